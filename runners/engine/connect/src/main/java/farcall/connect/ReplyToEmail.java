package farcall.connect;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.Map;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.common.config.ConfigDef.Importance;
import org.apache.kafka.common.config.ConfigDef.Type;
import org.apache.kafka.connect.connector.ConnectRecord;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.header.ConnectHeaders;
import org.apache.kafka.connect.transforms.Transformation;

/**
 * A reply of the support case as what a mail endpoint sends: the text as the body, To, Subject, In-Reply-To and References as headers.
 *
 * <p>The customer's id must be an address, as {@link EmailToEvent} makes it. The reply's own headers stand; without them the subject is
 * the setting {@code subject}, and the thread is that of the id. The other headers of the record stay behind: mail is no place for them.
 */
public final class ReplyToEmail<R extends ConnectRecord<R>> implements Transformation<R> {
  private static final ObjectMapper JSON = new ObjectMapper();
  private static final String SUBJECT = "subject";
  private String subject;

  @Override
  public R apply(R record) {
    if (!(record.value() instanceof byte[] bytes)) {
      return record;
    }
    JsonNode reply;
    try {
      reply = JSON.readTree(bytes);
    } catch (IOException error) {
      throw new DataException("A reply is no JSON", error);
    }
    String to = reply.path("customer_id").asText();
    if (!to.matches("[^@\\s<>]+@[^@\\s<>]+")) {
      throw new DataException("The customer of a reply is no address of e-mail");
    }
    ConnectHeaders headers = new ConnectHeaders();
    headers.addString("To", to);
    JsonNode own = reply.path("headers");
    headers.addString("Subject", oneLine(own.path("Subject").asText(subject)));
    String id = reply.path("id").asText();
    String thread = id.matches("[^@\\s<>]+@[^@\\s<>]+") ? "<" + id + ">" : "";
    for (String name : new String[] {"In-Reply-To", "References"}) {
      String value = oneLine(own.path(name).asText(thread));
      if (!value.isEmpty()) {
        headers.addString(name, value);
      }
    }
    return record.newRecord(
        record.topic(),
        record.kafkaPartition(),
        record.keySchema(),
        record.key(),
        Schema.STRING_SCHEMA,
        reply.path("reply").asText(),
        record.timestamp(),
        headers);
  }

  /** A header is one line; a line break in it would begin another. */
  private static String oneLine(String text) {
    return text.replaceAll("\\s+", " ").strip();
  }

  @Override
  public ConfigDef config() {
    return new ConfigDef()
        .define(SUBJECT, Type.STRING, "Your message", Importance.LOW, "The subject of a reply that has none.");
  }

  @Override
  public void configure(Map<String, ?> settings) {
    Object given = settings.get(SUBJECT);
    subject = given == null ? "Your message" : given.toString();
  }

  @Override
  public void close() {}
}
