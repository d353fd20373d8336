"""strict_smp.py DESCRIPTORS JSON YAML: are both files the same envelope of valid SMP messages?

Every message has to parse strictly as proto-JSON and to be what proto-JSON itself would write (snake-case
names): then integers of 64 bits are strings, enums are names and times are UTC. Prints how many there were.
"""

import json
import sys

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

MESSAGES = {
    "config": "PerformanceTestConfig",
    "mesh": "ServiceMeshConfig",
    "environment": "EnvironmentConfig",
    "results": "PerformanceTestResult",
}


def message_class(pool, name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"smp.{name}"))


def check(pool, name, value):
    message = message_class(pool, name)()
    json_format.Parse(json.dumps(value), message, ignore_unknown_fields=False, descriptor_pool=pool)
    canonical = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)
    if canonical != value or repr(canonical) != repr(ordered(value, canonical)):
        sys.exit(f"{name} is not canonical proto-JSON: {value} should be {canonical}")


def ordered(value, like):
    """`value` with its keys in the order of `like`, so that 1 and 1.0 can be told apart by their text."""
    if isinstance(value, dict):
        return {key: ordered(value[key], like[key]) for key in like}
    if isinstance(value, list):
        return [ordered(a, b) for a, b in zip(value, like, strict=True)]
    return value


def main():
    descriptors, as_json, as_yaml = sys.argv[1:]
    pool = descriptor_pool.DescriptorPool()
    with open(descriptors, "rb") as file:
        for proto in descriptor_pb2.FileDescriptorSet.FromString(file.read()).file:
            pool.Add(proto)
    with open(as_json, encoding="utf-8") as file:
        envelope = json.load(file)
    with open(as_yaml, encoding="utf-8") as file:
        from_yaml = yaml.safe_load(file)
    if from_yaml != envelope:
        sys.exit("YAML and JSON differ")
    if set(envelope) - {"warnings"} != set(MESSAGES):
        sys.exit(f"keys of the envelope: {sorted(envelope)}")
    count = 0
    for key, name in MESSAGES.items():
        values = envelope[key] if key == "results" else [envelope[key]]
        for value in values:
            try:
                check(pool, name, value)
            except json_format.ParseError as error:
                sys.exit(f"{name} does not parse: {error}")
            count += 1
    print(count)


main()
