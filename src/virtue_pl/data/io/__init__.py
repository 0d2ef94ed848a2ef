"""Files: atomic writing, archives, remote copies and their cache, image files, worker pools."""
