package farcall.connect;

import java.util.Map;
import java.util.Properties;
import org.apache.camel.CamelContext;
import org.apache.camel.builder.RouteBuilder;
import org.apache.camel.impl.DefaultCamelContext;
import org.apache.camel.main.SimpleMain;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.common.config.ConfigDef.Importance;
import org.apache.kafka.common.config.ConfigDef.Type;

/** What the two connectors share: their settings, named as Apache's Camel Kafka Connector names them, and a Camel context. */
final class Camel {
  static final String SOURCE_URL = "camel.source.url";
  static final String SOURCE_TO = "camel.source.to";
  static final String SINK_URL = "camel.sink.url";
  static final String TOPIC = "topics";
  private static final String PREFIX = "camel.";

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
