"""What a patch is, how it is put in place and taken out, and who decides. It knows no library and no torch."""
