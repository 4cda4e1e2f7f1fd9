"""The words that answers are drawn from, in the demo's hospital and in the larger one that the benchmark invents."""

from __future__ import annotations

_FIRST_NAMES = ("Mara", "Jonas", "Elin", "Tariq", "Noor", "Pavel", "Ines", "Kofi")
_LAST_NAMES = ("Lindqvist", "Okafor", "Brandt", "Moreau", "Tanaka", "Silva", "Novak", "Haddad")
NAMES = tuple(f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES)
CITIES = ("Lorn", "Vestby", "Altamar", "Quill", "Drossen", "Maroa", "Tyrn", "Esk", "Pellat", "Ovina")
_DIRECTORS = ("Abel", "Cruz", "Dahl", "Egan", "Fabre", "Gould", "Hale", "Ito", "Jung", "Katz")
DIRECTORS = tuple(f"Dr. {name}" for name in _DIRECTORS)
COMPLAINTS = (
    *("chest pain", "dry cough", "dizziness", "back pain", "fever", "weight loss", "fatigue", "nausea"),
    *("headache", "knee pain", "short breath", "night sweats", "hoarseness", "neck pain", "a fall", "rash"),
)
MEDICATIONS = (
    *("warfarin", "metformin", "lisinopril", "aspirin", "insulin", "ramipril", "digoxin", "codeine"),
    *("heparin", "atenolol", "prednisone", "morphine", "diazepam", "lithium", "quinine", "penicillin"),
)
SCANNERS = (
    *("Orion 2", "Lumen X", "Vega 7", "Halo 3", "Nimbus", "Corvus 1", "Atlas 9", "Pixis"),
    *("Zenith 4", "Aurora 5", "Delta 8", "Solis"),
)
LESION_SIZES = tuple(f"{size} mm" for size in range(5, 29))
LOCATIONS = (
    *("left apex", "right apex", "left base", "right base", "left hilum", "right hilum", "trachea", "aorta"),
    *("left rib", "right rib", "spine", "sternum", "diaphragm", "left lobe", "right lobe", "pleura"),
)
DIAGNOSES = (
    *("pneumonia", "embolism", "fibrosis", "sarcoidosis", "tuberculosis", "emphysema", "metastasis", "cyst"),
    *("fracture", "effusion", "abscess", "hernia", "aneurysm", "scoliosis", "granuloma", "atelectasis"),
)
