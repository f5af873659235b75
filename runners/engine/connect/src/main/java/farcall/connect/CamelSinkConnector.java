package farcall.connect;

import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.config.Config;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.connect.connector.Task;
import org.apache.kafka.connect.sink.SinkConnector;

/** Sends the records of topics to a Camel endpoint, each partition's in order. */
public final class CamelSinkConnector extends SinkConnector {
  private Map<String, String> settings;

  @Override
  public void start(Map<String, String> given) {
    settings = given;
  }

  @Override
  public Class<? extends Task> taskClass() {
    return CamelSinkTask.class;
  }

  @Override
  public List<Map<String, String>> taskConfigs(int most) {
    return Collections.nCopies(most, settings);
  }

  @Override
  public void stop() {}

  @Override
  public Config validate(Map<String, String> given) {
    return Camel.refuseUnset(super.validate(given), given);
  }

  @Override
  public ConfigDef config() {
    return Camel.sinkSettings();
  }

  @Override
  public String version() {
    return "1";
  }
}
