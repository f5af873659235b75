package farcall.bench;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.node.ObjectNode;
import org.apache.flink.streaming.api.functions.async.ResultFuture;
import org.apache.flink.streaming.api.functions.async.RichAsyncFunction;

/**
 * Asks the model server about an event with the JDK's asynchronous HTTP client, and tries again after a second where it refused, was
 * unreachable or failed, until the deadline.
 */
public final class AskModel extends RichAsyncFunction<String, String> {
    private static final long serialVersionUID = 1L;
    private static final int OK = 200;

    private final String url;
    private final long deadlineMs;
    private transient HttpClient client;
    private transient ObjectMapper mapper;

    public AskModel(String base, Duration deadline) {
        this.url = base + "/chat/completions";
        this.deadlineMs = deadline.toMillis();
    }

    @Override
    public void open(OpenContext context) {
        // HTTP/2 would be asked for with an upgrade of each first request, which the server does not know.
        client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        mapper = new ObjectMapper();
    }

    @Override
    public void asyncInvoke(String value, ResultFuture<String> result) throws Exception {
        JsonNode event = mapper.readTree(value);
        HttpRequest request =
                HttpRequest.newBuilder(URI.create(url))
                        .timeout(Duration.ofSeconds(30))
                        .header("Content-Type", "application/json")
                        .header("Idempotency-Key", event.get("id").textValue())
                        .POST(HttpRequest.BodyPublishers.ofByteArray(body(event.get("text").textValue())))
                        .build();
        ask(request, event, result, System.currentTimeMillis() + deadlineMs);
    }

    private void ask(HttpRequest request, JsonNode event, ResultFuture<String> result, long untilMs) {
        client.sendAsync(request, HttpResponse.BodyHandlers.ofByteArray())
                .whenComplete((answer, error) -> finish(request, event, result, untilMs, answer, error));
    }

    private void finish(
            HttpRequest request,
            JsonNode event,
            ResultFuture<String> result,
            long untilMs,
            HttpResponse<byte[]> answer,
            Throwable error) {
        if (error == null && answer.statusCode() == OK) {
            complete(event, result, answer.body());
        } else if (System.currentTimeMillis() + 1_000 < untilMs - 1_000) {
            CompletableFuture.delayedExecutor(1, TimeUnit.SECONDS).execute(() -> ask(request, event, result, untilMs));
        } else {
            result.complete(List.of(output(event, "error", "deadline")));
        }
    }

    private void complete(JsonNode event, ResultFuture<String> result, byte[] body) {
        try {
            JsonNode reply = mapper.readTree(body).get("choices").get(0).get("message").get("content");
            result.complete(List.of(output(event, "reply", reply.textValue())));
        } catch (Exception error) {
            result.complete(List.of(output(event, "error", "broken-reply")));
        }
    }

    private byte[] body(String text) throws Exception {
        ObjectNode root = mapper.createObjectNode().put("model", "bench");
        root.putArray("messages").addObject().put("role", "user").put("content", text);
        return mapper.writeValueAsBytes(root);
    }

    private String output(JsonNode event, String field, String text) {
        ObjectNode root = mapper.createObjectNode();
        root.put("id", event.get("id").textValue()).put("due_us", event.get("due_us").longValue()).put(field, text);
        return root.toString();
    }
}
