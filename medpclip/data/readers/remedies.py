"""What to do about each kind of problem that sends an image or a region of a source into the quarantine.

Every reason that the readers and the build can give is a key here, in the fixed words that shareable files count.
"""

from __future__ import annotations

REMEDIES: dict[str, str] = {
    # The image's file.
    "file is of a kind that no image reader reads": "convert it to PNG or JPEG, or move it out of 'options.images'",
    "image can't be decoded": "fetch the image file again, or delete it",
    "image file has several frames": "save each frame as an image file of its own",
    "image file is missing": "restore the image file, or correct the entry's file_name",
    "image has no finite value": "export the image again from its original",
    "image is a duplicate of another": "delete one of the two, and keep the annotation that is right",
    "image is truncated": "fetch the image file again",
    "image is turned by its EXIF orientation": "turn the pixels, check that the annotation fits, and remove the EXIF tag",
    # What belongs to the image.
    "annotation without an image": "restore the image, or delete the annotation",
    "image entry without an id": "give the entry an id of its own",
    "image is listed several times": "merge the image's entries into one",
    "image without an annotation": "annotate the image, or check the recipe's keys 'options.images' and its annotations",
    "several files share one name": "rename files so that each image has one annotation",
    "several images share one id": "give each image entry an id of its own",
    # Group, split, labels.
    "image is in none of the published splits": "add the image to a list or folder of the recipe's key 'split'",
    "patient or study of the image is not known": "state it in the metadata, or change the recipe's key 'group'",
    "value of an image label is not in the recipe": "add the value to 'values' or 'unlabelled' of the recipe's 'labels'",
    # The annotation's file.
    "annotation file can't be read as XML": "restore or correct the XML file",
    "annotation is not an object": "write the annotation as a JSON object, or delete it",
    "mask file can't be decoded": "fetch the mask file again, or export it anew",
    "mask has colours where numbers were expected": "save the mask with indices, or set the recipe's 'options.read'",
    # What a region is.
    "category is not a term": "write the term as text in the recipe's key 'terms'",
    "category is not declared": "add it to the JSON's 'categories', or correct the category_id",
    "label is not in the recipe's terms": "add the label to the recipe's key 'terms'",
    "number in the mask has no label in the recipe": "add the number to the recipe's 'options.values' or 'options.ignore'",
    "region without a label": "write the region's label, or correct the recipe's 'options.label_pattern'",
    # Where a region is.
    "box is degenerate": "draw the box again with a width and height above 0; for VOC, check 'options.corners'",
    "box is not four finite numbers": "correct the box to four numbers",
    "box reaches outside the image": "clip the box to the image, or check that it is this image's",
    "component is smaller than min_pixels": "erase the speck, or lower the recipe's 'options.min_pixels'",
    "has neither box, mask nor points": "draw the region's box or mask, or delete it",
    "image is of another size than stated": "fit the annotation to the image, or set 'options.declared_size' to ignore",
    "mask is empty": "draw the mask again, or delete it",
    "mask is not run lengths": "write 'size' and 'counts' as COCO does, or polygons",
    "mask is of another size than the image": "export the mask at the image's size",
    "point is not two finite numbers": "correct the point to two numbers",
    "point lies outside the image": "move the point into the image, or check that it is this image's",
    "points are not a list": "write the points as a list [[x, y], ...]",
    "polygon has fewer than three points": "draw the polygon again, or delete it",
    "polygon is not a list of numbers": "write the polygon as a list [x1, y1, x2, y2, ...]",
    "polygon reaches outside the image": "clip the polygon to the image, or check that it is this image's",
    "region without a box": "draw the region's box, or delete the region",
    "run lengths are broken": "export the mask again, so that its runs add up to width x height",
}
