"""A stand-in for DeepLesion: synthetic CT crops in the real data set's own files.

No pixel of it comes from a person. Everything made from it must say "phantom". The parts: `anatomy`
(a patient's tissue as a table of shapes), `render` (a slice of it in HU, and the scanner),
`lesions` (shape, picture and RECIST measurement), `study` (what one patient's images show) and
`writer` (files).

Frame: millimetres in the patient, x to the right of the picture, y to the back, z to the feet; the
origin is the centre of the body at the top of the lungs.
"""

from med_sslal.phantom.writer import GENERATOR_VERSION, generate

__all__ = ["GENERATOR_VERSION", "generate"]
