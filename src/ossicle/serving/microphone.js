"use strict";
const FRAME_SAMPLES = 960; // 40 ms at 24 kHz

class Microphone extends AudioWorkletProcessor { // posts the samples of the first channel in frames of 16-bit PCM
  frame = new Int16Array(FRAME_SAMPLES);
  filled = 0;

  process([[samples]]) {
    for (const sample of samples ?? []) {
      this.frame[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled < FRAME_SAMPLES) continue;
      this.port.postMessage(this.frame.slice());
      this.filled = 0;
    }
    return true;
  }
}
registerProcessor("microphone", Microphone);
