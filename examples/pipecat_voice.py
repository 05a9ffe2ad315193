"""An ear in a Pipecat pipeline, through the Realtime protocol of `ossicle serve`: sound in, the answer's text out.

    pip install ossicle 'pipecat-ai[openai]' soundfile
    ossicle serve pocket/ear --name ear
    python examples/pipecat_voice.py question.wav [ws://localhost:8000/v1/realtime]

A bot puts a transport's input in place of the file, and a speech synthesizer and the transport's output behind the LLM.
"""

import asyncio
import sys

import numpy as np
import soundfile
from pipecat.frames.frames import (
    EndWorkerFrame,
    Frame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

SILENCE_S = 1.5
"""Behind the question, so that the server finds its end."""


class PrintAnswer(FrameProcessor):
    """Prints the answer as it is written, and ends the pipeline behind it."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Passes every frame on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            print(frame.text, end="", flush=True)
        elif isinstance(frame, LLMFullResponseEndFrame):
            print()
            await self.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)
        await self.push_frame(frame, direction)


def read_question(path: str) -> list[InputAudioRawFrame]:
    """Returns a file with silence behind it, in frames of a fifth of a second."""
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    silence = np.zeros(int(SILENCE_S * rate), np.int16)
    mono = np.concatenate([samples[:, 0], silence])
    return [
        InputAudioRawFrame(audio=piece.tobytes(), sample_rate=rate, num_channels=1)
        for piece in np.array_split(mono, len(mono) * 5 // rate)
    ]


async def main(path: str, url: str) -> None:
    """Asks one question."""
    settings = events.SessionProperties(
        output_modalities=["text"],
        audio=events.AudioConfiguration(input=events.AudioInput(turn_detection=events.TurnDetection())),
    )
    llm = OpenAIRealtimeLLMService(
        api_key="none",  # or the server's
        base_url=url,
        settings=OpenAIRealtimeLLMService.Settings(model="ear", session_properties=settings),
    )
    worker = PipelineWorker(Pipeline([llm, PrintAnswer()]), enable_rtvi=False)

    @worker.event_handler("on_pipeline_error")
    async def stop(worker: PipelineWorker, error: Frame) -> None:
        print(error, file=sys.stderr)
        await worker.cancel()

    await worker.queue_frames(read_question(path))
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/pipecat_voice.py QUESTION.wav [URL]")
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "ws://localhost:8000/v1/realtime"))
