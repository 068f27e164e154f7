"""DICOM images with SEG and RTSTRUCT objects."""
