"""Makes exported models ready for other programs: fewer bits, and a folder with all to use."""
