package farcall.connect;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.ArrayList;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import org.apache.camel.AsyncCallback;
import org.apache.camel.Exchange;
import org.apache.camel.builder.RouteBuilder;
import org.apache.camel.main.SimpleMain;
import org.apache.camel.support.AsyncProcessorSupport;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.errors.ConnectException;
import org.apache.kafka.connect.source.SourceRecord;
import org.apache.kafka.connect.source.SourceTask;

/**
 * One record for each exchange of the endpoint. An exchange is finished only when Kafka has its record: until then a file stays
 * where it is and a row is not marked, so that a worker that dies brings them again. At least once, and nothing lost.
 */
public final class CamelSourceTask extends SourceTask {
  private static final int MOST_WAITING = 500;
  private static final ObjectMapper JSON = new ObjectMapper();

  private record Waiting(Exchange exchange, AsyncCallback callback) {}

  private final BlockingQueue<Waiting> queue = new LinkedBlockingQueue<>(MOST_WAITING);
  private final Map<SourceRecord, Waiting> sent = Collections.synchronizedMap(new IdentityHashMap<>());
  private SimpleMain main;
  private String topic;
  private Map<String, String> origin;
  private long count;

  @Override
  public void start(Map<String, String> settings) {
    String url = settings.get(Camel.SOURCE_URL);
    String to = settings.getOrDefault(Camel.SOURCE_TO, "");
    topic = settings.get(Camel.TOPIC);
    origin = Map.of("connector", settings.getOrDefault("name", "camel"));
    RouteBuilder route =
        new RouteBuilder() {
          @Override
          public void configure() {
            var begun = from(url);
            (to.isEmpty() ? begun : begun.to(to)).process(new Enqueue());
          }
        };
    try {
      main = Camel.start(settings, route);
    } catch (Exception error) {
      throw new ConnectException("Camel does not start the endpoint of " + Camel.SOURCE_URL, error);
    }
  }

  private final class Enqueue extends AsyncProcessorSupport {
    @Override
    public boolean process(Exchange exchange, AsyncCallback callback) {
      try {
        queue.put(new Waiting(exchange, callback));
        return false;
      } catch (InterruptedException error) {
        Thread.currentThread().interrupt();
        exchange.setException(error);
        callback.done(true);
        return true;
      }
    }
  }

  @Override
  public List<SourceRecord> poll() throws InterruptedException {
    Waiting first = queue.poll(200, TimeUnit.MILLISECONDS);
    if (first == null) {
      return null;
    }
    List<Waiting> taken = new ArrayList<>(List.of(first));
    queue.drainTo(taken);
    List<SourceRecord> records = new ArrayList<>(taken.size());
    for (Waiting waiting : taken) {
      byte[] value = bytes(waiting.exchange());
      SourceRecord record =
          new SourceRecord(origin, Map.of("count", ++count), topic, null, null, Schema.OPTIONAL_BYTES_SCHEMA, value);
      sent.put(record, waiting);
      records.add(record);
    }
    return records;
  }

  /** A body as it is; rows of a table and the like as JSON. */
  private static byte[] bytes(Exchange exchange) {
    Object body = exchange.getMessage().getBody();
    if (body instanceof Map || body instanceof List) {
      try {
        return JSON.writeValueAsBytes(body);
      } catch (Exception error) {
        throw new ConnectException("A body is not to be said in JSON", error);
      }
    }
    return exchange.getMessage().getBody(byte[].class);
  }

  @Override
  public void commitRecord(SourceRecord record, RecordMetadata metadata) {
    Waiting waiting = sent.remove(record);
    if (waiting != null) {
      waiting.callback().done(false);
    }
  }

  @Override
  public void stop() {
    List<Waiting> left = new ArrayList<>();
    queue.drainTo(left);
    synchronized (sent) {
      left.addAll(sent.values());
      sent.clear();
    }
    for (Waiting waiting : left) {
      waiting.exchange().setException(new RejectedExecutionException("The connector stops before Kafka had this record."));
      waiting.callback().done(false);
    }
    if (main != null) {
      main.stop();
    }
  }

  @Override
  public String version() {
    return "1";
  }
}
