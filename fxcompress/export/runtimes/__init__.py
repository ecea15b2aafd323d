"""What runs an exported file, one file each."""
