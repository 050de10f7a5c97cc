"""The message classes of proto/penstock.proto; their types stand in the stub beside this file."""

from wire.pool import file_classes

globals().update(file_classes("penstock.proto"))
