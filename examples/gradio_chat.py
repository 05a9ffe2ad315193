"""A page where one speaks to an ear and reads its answer as it is written.

    pip install ossicle gradio
    python examples/gradio_chat.py [EAR]

EAR is the folder or hub id of an ear; without it, the embedded one, which knows a small world only.
"""

import sys
from collections.abc import Iterator

import gradio as gr
import numpy as np

import ossicle

ear = ossicle.load(sys.argv[1] if len(sys.argv) > 1 else "pocket/ear")


def answer(sound: tuple[int, np.ndarray] | None, instruction: str) -> Iterator[str]:
    """Yields the answer to a question, longer each time."""
    if sound is None:
        raise gr.Error("Record a question first.")
    parts = [{"type": "audio", "audio": sound}]
    if instruction.strip():
        parts.append({"type": "text", "text": instruction})
    text = ""
    try:
        for piece in ear.stream([{"role": "user", "content": parts}]):
            text += piece
            yield text
    except ossicle.OssicleError as error:  # nobody spoke, or too long
        raise gr.Error(str(error)) from error


page = gr.Interface(
    answer,
    inputs=[
        gr.Audio(sources=["microphone", "upload"], type="numpy", label="Question"),
        gr.Textbox(label="Instruction in writing, if any", placeholder="Answer in Spanish."),
    ],
    outputs=gr.Textbox(label="Answer"),
    title="An LLM with ears",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
