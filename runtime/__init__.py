"""What the scripts share and a student may skip: no lesson hides here."""



