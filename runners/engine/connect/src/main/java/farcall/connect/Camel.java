package farcall.connect;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.camel.CamelContext;
import org.apache.camel.builder.RouteBuilder;
import org.apache.camel.impl.DefaultCamelContext;
import org.apache.camel.main.SimpleMain;
import org.apache.kafka.common.config.Config;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.common.config.ConfigDef.Importance;
import org.apache.kafka.common.config.ConfigDef.Type;
import org.apache.kafka.common.config.ConfigValue;

/** What the two connectors share: their settings, named as Apache's Camel Kafka Connector names them, and a Camel context. */
final class Camel {
  static final String SOURCE_URL = "camel.source.url";
  static final String SOURCE_TO = "camel.source.to";
  static final String SINK_URL = "camel.sink.url";
  static final String TOPIC = "topics";
  private static final String PREFIX = "camel.";
  private static final Pattern VARIABLE = Pattern.compile("\\$\\{env:([^}]*)}");

  private Camel() {}

  static ConfigDef sourceSettings() {
    return new ConfigDef()
        .define(SOURCE_URL, Type.STRING, Importance.HIGH, "The endpoint that records come from, such as file:/mail.")
        .define(SOURCE_TO, Type.STRING, "", Importance.MEDIUM, "An endpoint asked on the way, as HTTP behind timer:.")
        .define(TOPIC, Type.STRING, Importance.HIGH, "The topic that records go to.");
  }

  static ConfigDef sinkSettings() {
    return new ConfigDef()
        .define(SINK_URL, Type.STRING, Importance.HIGH, "The endpoint that records go to, such as smtp://host.");
  }

  /**
   * The verdict, with an error for each setting that names a variable which the worker does not have. Kafka leaves such a name where
   * it stands, and an endpoint would take it for a folder or a host.
   */
  static Config refuseUnset(Config verdict, Map<String, String> settings) {
    List<ConfigValue> values = new ArrayList<>(verdict.configValues());
    settings.forEach(
        (name, value) -> {
          Matcher left = VARIABLE.matcher(value == null ? "" : value);
          if (left.find()) {
            ConfigValue at = values.stream().filter(one -> one.name().equals(name)).findFirst().orElse(null);
            if (at == null) {
              at = new ConfigValue(name);
              values.add(at);
            }
            at.addErrorMessage(
                "The setting " + name + " needs the variable " + left.group(1) + ", which was not set where the worker was started.");
          }
        });
    return new Config(values);
  }

  /** A started Camel; settings that begin with camel. but are ours are kept from it, camel.beans.* and the like are its own. */
  static SimpleMain start(Map<String, String> settings, RouteBuilder... routes) throws Exception {
    CamelContext context = new DefaultCamelContext();
    SimpleMain main = new SimpleMain(context);
    Properties own = new Properties();
    settings.forEach(
        (name, value) -> {
          if (name.startsWith(PREFIX) && !name.startsWith("camel.source.") && !name.startsWith("camel.sink.")) {
            own.put(name, value);
          }
        });
    main.setInitialProperties(own);
    main.configure().withAutoConfigurationEnvironmentVariablesEnabled(false);
    for (RouteBuilder route : routes) {
      main.configure().addRoutesBuilder(route);
    }
    main.start();
    return main;
  }
}
