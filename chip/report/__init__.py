"""What a run says to a person: in the terminal (`text`) and on a web page (`html`)."""
