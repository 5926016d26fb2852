"""How every streamed answer goes, whatever its dialect."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from proxy.fake_ollama.call import Call
from proxy.fake_ollama.errors import ApiError, RunnerError, SilentEnd
from proxy.fake_ollama.generation import Generation, Piece, Wish
from proxy.fake_ollama.wire import Headers


class Stream(ABC):
    content_type: str
    headers: Headers = ()

    def opening(self, generation: Generation) -> Iterable[bytes]:
        return ()

    @abstractmethod
    def piece(self, piece: Piece) -> bytes: ...

    @abstractmethod
    def closing(self, generation: Generation) -> Iterable[bytes]: ...

    @abstractmethod
    def failure(self, text: str) -> bytes | None:
        """What the client sees of a failure in midstream."""


async def stream_generation(call: Call, wish: Wish, stream: Stream) -> None:
    answer = call.answer
    try:
        async with Generation(call, wish) as generation:
            await pump(call, generation, stream)
        for data in stream.closing(generation):
            await answer.chunk(data)
    except SilentEnd:
        if not answer.begun:
            await answer.begin(stream.content_type, stream.headers)
    except RunnerError as error:
        if not answer.begun:
            raise ApiError(error.status, error.text, charset=False) from error
        last = stream.failure(error.text)
        if last:
            await answer.chunk(last)
    await answer.end()


async def pump(call: Call, generation: Generation, stream: Stream) -> None:
    # The head leaves with the first chunk: a failure before it still has a status of its own.
    answer = call.answer
    piece = await generation.next()
    await answer.begin(stream.content_type, stream.headers)
    for data in stream.opening(generation):
        await answer.chunk(data)
    while piece is not None:
        await answer.chunk(stream.piece(piece))
        piece = await generation.next()
