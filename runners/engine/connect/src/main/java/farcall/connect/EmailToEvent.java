package farcall.connect;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import jakarta.mail.Address;
import jakarta.mail.MessagingException;
import jakarta.mail.Session;
import jakarta.mail.internet.AddressException;
import jakarta.mail.internet.InternetAddress;
import jakarta.mail.internet.MimeMessage;
import java.io.ByteArrayInputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.Charset;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Date;
import java.util.HexFormat;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.connect.connector.ConnectRecord;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.transforms.Transformation;

/**
 * An e-mail (RFC 5322) as a support event: id from Message-ID, customer_id from the address in From, at from Date, raw the message.
 *
 * <p>What a message does not have the event does not have, and the pipeline makes a dead letter of it: nothing is lost here. Only a
 * message without an id gets one, its digest, so that a copy of it counts as a repeat.
 */
public final class EmailToEvent<R extends ConnectRecord<R>> implements Transformation<R> {
  private static final ObjectMapper JSON = new ObjectMapper();
  private static final Session SESSION = Session.getInstance(new Properties());

  @Override
  public R apply(R record) {
    if (!(record.value() instanceof byte[] bytes)) {
      return record;
    }
    ObjectNode event = JSON.createObjectNode();
    try {
      MimeMessage message = new MimeMessage(SESSION, new ByteArrayInputStream(bytes));
      event.put("id", id(message, bytes));
      event.put("channel", "email");
      String customer = sender(message);
      if (customer != null) {
        event.put("customer_id", customer);
      }
      Date date = message.getSentDate();
      if (date != null) {
        event.put("at", date.toInstant().toString());
      }
      event.put("raw", text(bytes));
      byte[] key = customer == null ? null : customer.getBytes(StandardCharsets.UTF_8);
      return record.newRecord(
          record.topic(),
          record.kafkaPartition(),
          Schema.OPTIONAL_BYTES_SCHEMA,
          key,
          Schema.BYTES_SCHEMA,
          JSON.writeValueAsBytes(event),
          record.timestamp());
    } catch (MessagingException | com.fasterxml.jackson.core.JsonProcessingException error) {
      throw new DataException("A file of the folder is no e-mail", error);
    }
  }

  private static String id(MimeMessage message, byte[] bytes) throws MessagingException {
    String id = message.getMessageID();
    if (id != null && !id.isBlank()) {
      return id.strip().replaceAll("^<|>$", "");
    }
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    } catch (NoSuchAlgorithmException error) {
      throw new IllegalStateException(error);
    }
  }

  /** The first address in From; null where there is none, or what stands there is no address: one bad message must not stop the folder. */
  private static String sender(MimeMessage message) throws MessagingException {
    try {
      Address[] from = message.getFrom();
      return from != null && from.length > 0 && from[0] instanceof InternetAddress one ? one.getAddress() : null;
    } catch (AddressException error) {
      return null;
    }
  }

  /** UTF-8 where it is, else the charset of Western mail: every byte is a character in it. */
  private static String text(byte[] bytes) {
    try {
      return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    } catch (CharacterCodingException error) {
      return new String(bytes, Charset.forName("windows-1252"));
    }
  }

  @Override
  public ConfigDef config() {
    return new ConfigDef();
  }

  @Override
  public void configure(Map<String, ?> settings) {}

  @Override
  public void close() {}
}
