"""python hear.py classifier.onnx RECORDING...: the label of the first clip of each recording."""

import json
import sys

import numpy
import onnxruntime
import soundfile
import soxr

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(sys.argv[1], options)
facts = session.get_modelmeta().custom_metadata_map
labels = json.loads(facts["labels"])
for path in sys.argv[2:]:
    audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    audio = soxr.resample(audio.mean(axis=1), rate_hz, int(facts["sample_rate_hz"]))
    clip = numpy.resize(audio, (1, int(facts["samples"])))
    print(labels[session.run(["probabilities"], {"waveform": clip})[0].argmax()])
