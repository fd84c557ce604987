"""The text in a tf.train.Example, as TFDS writes them into ArrayRecord files, without TensorFlow.

The message is described here field by field; a text is a list with one byte string.
"""

import functools

from miras_jax.data.errors import need


@functools.cache
def _example_class() -> type:
    descriptor = need("google.protobuf.descriptor_pb2")
    pool = need("google.protobuf.descriptor_pool").DescriptorPool()
    kind = descriptor.FieldDescriptorProto
    file = descriptor.FileDescriptorProto(
        name="tf_example.proto", package="example", syntax="proto3"
    )

    def add(message, name: str, number: int, type_: int, of: str = "", repeated: bool = False):
        label = kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL
        message.field.add(name=name, number=number, label=label, type=type_, type_name=of or None)

    values = file.message_type.add(name="BytesList")
    add(values, "value", 1, kind.TYPE_BYTES, repeated=True)
    feature = file.message_type.add(name="Feature")
    add(feature, "bytes_list", 1, kind.TYPE_MESSAGE, ".example.BytesList")
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, kind.TYPE_STRING)
    add(entry, "value", 2, kind.TYPE_MESSAGE, ".example.Feature")
    add(features, "feature", 1, kind.TYPE_MESSAGE, ".example.Features.FeatureEntry", repeated=True)
    example = file.message_type.add(name="Example")
    add(example, "features", 1, kind.TYPE_MESSAGE, ".example.Features")
    pool.AddSerializedFile(file.SerializeToString())
    factory = need("google.protobuf.message_factory")
    return factory.GetMessageClass(pool.FindMessageTypeByName("example.Example"))


def text_of(record: bytes, field: str) -> bytes | None:
    """The bytes of a feature; None where there is none or it is no single byte string.

    Raises:
      ValueError: the record is no tf.train.Example.
    """
    message = need("google.protobuf.message")
    try:
        example = _example_class().FromString(record)
    except message.DecodeError:
        raise ValueError("no tf.train.Example; see --records") from None
    features = example.features.feature
    values = features[field].bytes_list.value if field in features else []
    return values[0] if len(values) == 1 else None
