from fastconv.backends.cpu.compiling import fingerprint as fingerprint
