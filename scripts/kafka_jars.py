"""Fetches Spark's connector for Kafka and a Kafka broker, for the tests that need a real one, and prints the paths of the jars.

The connector comes first, with what it needs: four jars. The broker runs with these and the jars that PySpark ships.
If FIRN_KAFKA_JARS names a folder, the jars in it are used unchecked.
"""

import os
import sys
from pathlib import Path

from maven_jars import TOOLS, FetchError, Jar, fetch_jars, print_found

VARIABLE = "FIRN_KAFKA_JARS"
CONNECTOR = [
    Jar(
        "org.apache.spark:spark-sql-kafka-0-10_2.12:3.5.7",
        "184f8bd4a3cd22299c49090d88b894f81fd7546b4ee64879519a0d76a685dbb8",
    ),
    Jar(
        "org.apache.spark:spark-token-provider-kafka-0-10_2.12:3.5.7",
        "9701914db5c6d09628b58d2d2c1ccd2c9ea28f32f83dd6cb21f98b8237531ff4",
    ),
    Jar("org.apache.kafka:kafka-clients:3.4.1", "9d0a9058c8ede79db6e54ae378ed16fe8d1bead2894635a4aa6aa0b7981668c6"),
    Jar("org.apache.commons:commons-pool2:2.11.1", "ea0505ee7515e58b1ac0e686e4d1a5d9f7d808e251a61bc371aa0595b9963f83"),
]
BROKER = [
    Jar("org.apache.kafka:kafka_2.12:3.4.1", "3fde76a9aed3e2e1adeb6746f4d4cae749f7a6d6e7ddf764723704fe242cccb8"),
    Jar(
        "org.apache.kafka:kafka-group-coordinator:3.4.1",
        "23d19073e57d67a017780678d7de6bc8a051495179060978ffe379201cd605b0",
    ),
    Jar("org.apache.kafka:kafka-metadata:3.4.1", "878be8d812d96925098baf3e012745a64aebe1df7c1b6fec32c56c7d5ed3c664"),
    Jar("org.apache.kafka:kafka-raft:3.4.1", "37621aa3e3f0628385b0e0ef65570721187cbb3024fabe2a25c21d73e5cdcdab"),
    Jar(
        "org.apache.kafka:kafka-server-common:3.4.1", "c9f636e9478205abc57b1ea6ef9cd00eca8e4ef0353219f036fdb793f0bd716f"
    ),
    Jar("org.apache.kafka:kafka-storage:3.4.1", "bbee827a1f3e5471fdc9fc7e7ac9508d175b39994040158c8e03b6338be69707"),
    Jar("org.apache.kafka:kafka-storage-api:3.4.1", "6dd1e6ce5252ad49c7bcf087a29be9cb4456adbf0406134384ff50a9658140c9"),
    Jar(
        "com.typesafe.scala-logging:scala-logging_2.12:3.9.4",
        "57fc0b1be2128e2f6741fc63722d4a9bbfa63cc57fb03ada63118394b615b558",
    ),
    Jar("com.yammer.metrics:metrics-core:2.2.0", "6b7a14a6f34c10f8683f7b5e2f39df0f07b58c7dff0e468ebbc713905c46979c"),
    Jar("net.sf.jopt-simple:jopt-simple:5.0.4", "df26cc58f235f477db07f753ba5a3ab243ebe5789d9f89ecf68dd62ea9a66c28"),
    Jar(
        "net.sourceforge.argparse4j:argparse4j:0.7.0",
        "65ceb669d88f63306c680f8088bbf765bbca72d288a61a03703000076c3d3f56",
    ),
    Jar(
        "org.scala-lang.modules:scala-java8-compat_2.12:1.0.2",
        "2f509b96ec69c130e6d062d6a6a25e293d23b1b411129480295999cc15d3febf",
    ),
]


def find_kafka() -> list[Path]:
    """The jars: those in the folder that FIRN_KAFKA_JARS names, or those fetched before or now.

    Raises:
        FetchError: a jar is missing; the message says what was tried and what to do.
    """
    jars, named = [*CONNECTOR, *BROKER], os.environ.get(VARIABLE)
    if not named:
        return fetch_jars(jars, TOOLS / "kafka", variable=VARIABLE)
    paths = [Path(named).resolve() / jar.name for jar in jars]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FetchError(f"{VARIABLE} names a folder without {', '.join(missing)}: {named}")
    return paths


if __name__ == "__main__":
    sys.exit(print_found(find_kafka))
