package farcall.connect;

import java.util.List;
import java.util.Map;
import org.apache.kafka.common.config.Config;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.connect.connector.Task;
import org.apache.kafka.connect.source.SourceConnector;

/** Brings what a Camel endpoint consumes into a topic; one task, as endpoints such as folders do not divide. */
public final class CamelSourceConnector extends SourceConnector {
  private Map<String, String> settings;

  @Override
  public void start(Map<String, String> given) {
    settings = given;
  }

  @Override
  public Class<? extends Task> taskClass() {
    return CamelSourceTask.class;
  }

  @Override
  public List<Map<String, String>> taskConfigs(int most) {
    return List.of(settings);
  }

  @Override
  public void stop() {}

  @Override
  public Config validate(Map<String, String> given) {
    return Camel.refuseUnset(super.validate(given), given);
  }

  @Override
  public ConfigDef config() {
    return Camel.sourceSettings();
  }

  @Override
  public String version() {
    return "1";
  }
}
