"""What a run will take, from shapes alone: sizes, memory and operations. Nothing here trains."""
