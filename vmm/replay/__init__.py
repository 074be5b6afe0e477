"""Record and replay: a run travels as a bundle of kilobytes, and repeats without the image.

``docs/bundle.md`` describes the file.  :class:`~vmm.replay.recorder.Recorder` is a :class:`vmm.boundary.Runner` around
another one, :class:`~vmm.replay.player.Player` runs what a bundle holds on any runner and compares.  Both see devices,
requests and reports as bytes; nothing here interprets them.
"""
