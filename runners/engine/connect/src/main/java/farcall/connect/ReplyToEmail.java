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
 * <p>The customer's id must be an address, as {@link EmailToEvent} makes it. A subject of the reply's own stands; else it is the
 * setting {@code subject}. The other headers of the record stay behind: mail is no place for them.
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
    headers.addString("Subject", oneLine(reply.path("subject").asText(subject)));
    String id = reply.path("id").asText();
    if (id.matches("[^@\\s<>]+@[^@\\s<>]+")) {
      headers.addString("In-Reply-To", "<" + id + ">");
      headers.addString("References", "<" + id + ">");
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
