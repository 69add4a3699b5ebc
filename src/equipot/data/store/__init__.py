"""equipot's own file of frames: built by several processes, resumable, read frame by frame."""
