"""A stream's response to a plain token as bytes: all that never changes is written once.

Source of the layout: proto/inference.proto, and protobuf's encoding of length-delimited fields.
`raw_output_contents` is the last field of a ModelInferResponse.
"""

from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest
from wire.inference_pb2 import ModelInferResponse, ModelStreamInferResponse
from wire.text_inputs import OutputSelection
from wire.text_response import encode_text_response

_LENGTH_DELIMITED = 2


def _tag(message: type, field: str) -> bytes:
    number: int = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]
    return _varint(number << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_RAW = _tag(ModelInferResponse, "raw_output_contents")
_INFER_RESPONSE = _tag(ModelStreamInferResponse, "infer_response")
_VARINTS = [_varint(it) for it in range(2048)]
_LENGTHS = [it.to_bytes(4, "little") for it in range(2048)]
_SHORT = len(_VARINTS) - 512


class PlainResponses:
    """Writes the responses of one request of one choice that have its text and nothing else new.

    `fits` is whether there are any: other outputs, and typed contents, are for
    `wire.text_response`.
    """

    def __init__(self, request: GenerateRequest, selection: OutputSelection) -> None:
        self.fits = (
            selection.outputs == ("text_output",)
            and not selection.typed
            and request.sampling.n == 1
        )
        if self.fits:
            empty = GenerateDelta(choices=[ChoiceDelta(index=0)])
            response = encode_text_response(request, selection, empty)
            del response.raw_output_contents[:]
            self._head = response.SerializeToString()

    def encode(self, delta: GenerateDelta) -> bytes | None:
        """Return a serialized ModelStreamInferResponse; None for a delta with more than text."""
        if not self.fits or delta.usage is not None or delta.route is not None:
            return None
        choices = delta.choices
        if len(choices) != 1 or choices[0].stop_reason is not None:
            return None
        return self.text(choices[0].text)

    def text(self, new: str) -> bytes | None:
        """Return the same for a delta of text alone; None for a long one."""
        text = new.encode()
        size, head = len(text), self._head
        if size > _SHORT or len(head) > 500:
            return None
        raw = size + 4
        inner = len(head) + len(_RAW) + len(_VARINTS[raw]) + raw
        return b"".join(
            (_INFER_RESPONSE, _VARINTS[inner], head, _RAW, _VARINTS[raw], _LENGTHS[size], text)
        )
