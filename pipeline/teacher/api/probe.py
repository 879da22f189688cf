"""The probe: fixed texts by whose vectors an API's model is recognised, and by which it is seen to be alive."""

from pipeline.params import Role

PROBE_TEXTS = (
    "What is a text embedding?",
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b",
    "In 1969 the first people walked on the Moon, 384,400 km from home.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "¿Dónde está la biblioteca más cercana?",
    "天气很好，我们去公园散步吧。",
    "Symptoms of the flu include fever, cough, sore throat and fatigue.",
)

PROBE_ROLE: Role = "document"
