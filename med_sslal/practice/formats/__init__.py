"""The formats of annotation tools, a file each: what goes out in them, and what comes back."""
