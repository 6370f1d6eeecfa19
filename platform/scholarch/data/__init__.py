"""Sources of pictures, the sample stream, crops and the loader that feeds the trainer."""
