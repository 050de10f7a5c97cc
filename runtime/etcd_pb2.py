"""The message classes of proto/etcd.proto; their types stand in the stub beside this file."""

from runtime.message_pool import MessagePool

globals().update(MessagePool("runtime", "etcd.binpb").file_classes("etcd.proto"))
