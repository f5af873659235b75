package farcall.bench;

import java.time.Duration;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.serialization.SimpleStringSchema;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.datastream.AsyncDataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Kafka to the model server to Kafka, through Flink's own asynchronous operator: unordered, at least once.
 *
 * <p>Arguments: servers, topic in, topic out, base URL, name, capacity, parallelism, milliseconds between checkpoints.
 */
public final class AsyncJob {
    private static final Duration DEADLINE = Duration.ofSeconds(120);

    private AsyncJob() {}

    public static void main(String[] args) throws Exception {
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.getExecutionEnvironment();
        environment.setParallelism(Integer.parseInt(args[6]));
        environment.enableCheckpointing(Long.parseLong(args[7]));
        // Flink's default of 100 ms is for throughput; what latency this costs is no part of the operator.
        environment.setBufferTimeout(5);
        SingleOutputStreamOperator<String> asked =
                AsyncDataStream.unorderedWait(
                        environment.fromSource(source(args), WatermarkStrategy.noWatermarks(), "read"),
                        new AskModel(args[3], DEADLINE),
                        DEADLINE.toMillis(),
                        TimeUnit.MILLISECONDS,
                        Integer.parseInt(args[5]));
        asked.sinkTo(sink(args)).name("write");
        environment.execute(args[4]);
    }

    private static KafkaSource<String> source(String[] args) {
        return KafkaSource.<String>builder()
                .setBootstrapServers(args[0])
                .setTopics(args[1])
                .setGroupId(args[4])
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setValueOnlyDeserializer(new SimpleStringSchema())
                .build();
    }

    private static KafkaSink<String> sink(String[] args) {
        return KafkaSink.<String>builder()
                .setBootstrapServers(args[0])
                .setDeliveryGuarantee(DeliveryGuarantee.AT_LEAST_ONCE)
                .setProperty("linger.ms", "2")
                .setRecordSerializer(
                        KafkaRecordSerializationSchema.builder()
                                .setTopic(args[2])
                                .setValueSerializationSchema(new SimpleStringSchema())
                                .build())
                .build();
    }
}
