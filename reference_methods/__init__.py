"""The methods of the AV-CIL paper, each as a third party would write it."""
