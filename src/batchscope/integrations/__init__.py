"""What joins batchscope to other programs: a file each, imported when it is used."""
