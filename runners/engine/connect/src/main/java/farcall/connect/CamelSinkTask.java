package farcall.connect;

import jakarta.mail.SendFailedException;
import java.nio.charset.StandardCharsets;
import java.util.Collection;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import org.apache.camel.Exchange;
import org.apache.camel.ProducerTemplate;
import org.apache.camel.http.base.HttpOperationFailedException;
import org.apache.camel.main.SimpleMain;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.connect.errors.ConnectException;
import org.apache.kafka.connect.errors.RetriableException;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.sink.ErrantRecordReporter;
import org.apache.kafka.connect.sink.SinkRecord;
import org.apache.kafka.connect.sink.SinkTask;

/**
 * Sends each record to the endpoint, its headers with it. What the endpoint will never take goes to the connector's dead letter
 * queue where it has one; anything else is tried again, from the record that failed on, until it succeeds.
 */
public final class CamelSinkTask extends SinkTask {
  private static final long RETRY_AFTER_MS = 1_000;

  private final Map<TopicPartition, Long> next = new HashMap<>();
  private SimpleMain main;
  private ProducerTemplate template;
  private String url;
  private ErrantRecordReporter reporter;

  @Override
  public void start(Map<String, String> settings) {
    url = settings.get(Camel.SINK_URL);
    reporter = context.errantRecordReporter();
    try {
      main = Camel.start(settings);
      template = main.getCamelContext().createProducerTemplate();
    } catch (Exception error) {
      throw new ConnectException("Camel does not start the endpoint of " + Camel.SINK_URL, error);
    }
  }

  @Override
  public void put(Collection<SinkRecord> records) {
    for (SinkRecord record : records) {
      TopicPartition at = new TopicPartition(record.topic(), record.kafkaPartition());
      // A batch that failed comes again whole; what was sent of it is not sent twice.
      if (record.kafkaOffset() >= next.getOrDefault(at, 0L)) {
        send(record);
        next.put(at, record.kafkaOffset() + 1);
      }
    }
  }

  private void send(SinkRecord record) {
    Exchange sent =
        template.send(
            url,
            exchange -> {
              exchange.getMessage().setBody(record.value());
              for (Header header : record.headers()) {
                if (!isCommand(header.key())) {
                  exchange.getMessage().setHeader(header.key(), text(header.value()));
                }
              }
            });
    Exception error = sent.getException();
    if (error == null) {
      return;
    }
    if (!isFinal(error)) {
      context.timeout(RETRY_AFTER_MS);
      throw new RetriableException("The endpoint did not take a record; it is sent again", error);
    }
    if (reporter == null) {
      throw new ConnectException("The endpoint refused a record, and the connector has no dead letter queue", error);
    }
    reporter.report(record, error);
  }

  /** Whether Camel would obey a header, such as CamelHttpUri, which names another server: records say what is sent, never where to. */
  private static boolean isCommand(String name) {
    String lower = name.toLowerCase(Locale.ROOT);
    return lower.startsWith("camel") || lower.startsWith("org.apache.camel");
  }

  private static Object text(Object value) {
    return value instanceof byte[] bytes ? new String(bytes, StandardCharsets.UTF_8) : value;
  }

  /** Whether sending the same again is of no use: a request that is wrong, an address that is none. */
  private static boolean isFinal(Throwable error) {
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      if (cause instanceof HttpOperationFailedException http) {
        int status = http.getStatusCode();
        return status >= 400 && status < 500 && status != 408 && status != 429;
      }
      if (cause instanceof SendFailedException mail) {
        return mail.getInvalidAddresses() != null && mail.getInvalidAddresses().length > 0;
      }
      if (cause instanceof jakarta.mail.internet.AddressException || cause instanceof IllegalArgumentException) {
        return true;
      }
    }
    return false;
  }

  @Override
  public void close(Collection<TopicPartition> partitions) {
    next.keySet().removeAll(partitions);
  }

  @Override
  public void stop() {
    if (main != null) {
      main.stop();
    }
  }

  @Override
  public String version() {
    return "1";
  }
}
