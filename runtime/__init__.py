"""What the scripts share. A student may skip it: the lessons are elsewhere."""



