"""An ear as a LiveKit agent, through the Realtime protocol of `ossicle serve`: sound in, the answer's text out.

    pip install ossicle livekit-agents livekit-plugins-openai soundfile
    ossicle serve pocket/ear --name ear
    python examples/livekit_agent.py question.wav [http://localhost:8000/v1]

In a room, `session.start(agent, room=ctx.room)` takes the place of the file and of the printed text, and a speech
synthesizer (`AgentSession(tts=...)`) speaks the answer.
"""

import asyncio
import sys
from collections.abc import Iterator

import aiohttp
import numpy as np
import soundfile
from livekit import rtc
from livekit.agents import Agent, AgentSession, ConversationItemAddedEvent, ErrorEvent
from livekit.agents.voice import io
from livekit.plugins.openai import realtime
from openai.types.realtime.realtime_audio_input_turn_detection import ServerVad

SILENCE_S = 1.5
"""Behind the question, so that the server finds its end."""
FRAME_S = 0.05


class Question(io.AudioInput):
    """A file with silence behind it, as fast as it was spoken."""

    def __init__(self, path: str) -> None:
        super().__init__(label="file")
        self.frames = read_frames(path)

    async def __anext__(self) -> rtc.AudioFrame:
        """Returns the next piece; after the last, silence is all that follows."""
        await asyncio.sleep(FRAME_S)
        frame = next(self.frames, None)
        if frame is None:
            await asyncio.Event().wait()
        assert frame is not None
        return frame


class Printed(io.TextOutput):
    """Prints the answer as it is written."""

    def __init__(self) -> None:
        super().__init__(label="terminal", next_in_chain=None)

    async def capture_text(self, text: str) -> None:
        """Prints a piece."""
        print(text, end="", flush=True)

    def flush(self) -> None:
        """Ends the line."""
        print()


def read_frames(path: str) -> Iterator[rtc.AudioFrame]:
    """Yields the pieces of a file."""
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    mono = np.concatenate([samples[:, 0], np.zeros(int(SILENCE_S * rate), np.int16)])
    for piece in np.array_split(mono, round(len(mono) / rate / FRAME_S)):
        yield rtc.AudioFrame(
            piece.tobytes(), sample_rate=rate, num_channels=1, samples_per_channel=len(piece)
        )


async def main(path: str, url: str) -> int:
    """Asks one question."""
    problems, is_answered = [], asyncio.Event()
    async with aiohttp.ClientSession() as http:
        ear = realtime.RealtimeModel(
            model="ear",
            base_url=url,
            api_key="none",  # or the server's
            modalities=["text"],
            turn_detection=ServerVad(type="server_vad"),
            http_session=http,
        )
        session = AgentSession(llm=ear)

        @session.on("conversation_item_added")
        def end(event: ConversationItemAddedEvent) -> None:
            if event.item.type == "message" and event.item.role == "assistant":
                is_answered.set()

        @session.on("error")
        def stop(event: ErrorEvent) -> None:
            problems.append(event.error)
            is_answered.set()

        session.input.audio, session.output.transcription = Question(path), Printed()
        await session.start(Agent(instructions="Answer briefly."))
        await is_answered.wait()
        await session.aclose()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/livekit_agent.py QUESTION.wav [URL]")
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "http://localhost:8000/v1")))
