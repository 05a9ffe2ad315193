"""Parts of an HTML page that needs no other file: templates that escape all values, and embedded sound."""

import base64
import io

import jinja2
import numpy as np
import soundfile

from ossicle.audio.waveform import SAMPLE_RATE


def load_templates(package: str) -> jinja2.Environment:
    """Returns the templates in a package's folder `templates`; an undefined name in a template is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def encode_wav(samples: np.ndarray) -> bytes:
    """Returns samples at 16 kHz as a WAV file with 16 bits a sample."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def encode_data_uri(mime_type: str, encoded: bytes) -> str:
    """Returns a file as a data URI."""
    return f"data:{mime_type};base64,{base64.b64encode(encoded).decode('ascii')}"
