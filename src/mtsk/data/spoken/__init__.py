"""Speech made from text by free voices, with the times of its words: sound to train on where there are no recordings.

One module for each kind of voice (`flite`, `espeak`, `piper`, `kokoro`), `variation` for what makes one voice sound
like many, and `voices` for what they share. None of their programs is needed unless its voice is asked for.
"""
