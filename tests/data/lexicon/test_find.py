"""Labels of public datasets, as they are written there, and the terms that they mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.lexicon import Lexicon, Term
from medpclip.data.lexicon.labels import normal_form, split_camel, without_plurals

LEXICON = Lexicon.load()
# label: term, by the naming of the source.
GOLDEN = """
TotalSegmentator
spleen: spleen
kidney_right: right kidney
kidney_left: left kidney
gallbladder: gallbladder
liver: liver
stomach: stomach
pancreas: pancreas
adrenal_gland_right: right adrenal gland
adrenal_gland_left: left adrenal gland
lung_upper_lobe_left: left lung upper lobe
lung_lower_lobe_left: left lung lower lobe
lung_upper_lobe_right: right lung upper lobe
lung_middle_lobe_right: right lung middle lobe
lung_lower_lobe_right: right lung lower lobe
esophagus: oesophagus
trachea: trachea
thyroid_gland: thyroid gland
small_bowel: small bowel
duodenum: duodenum
colon: colon
urinary_bladder: urinary bladder
prostate: prostate
kidney_cyst_left: left kidney cyst
kidney_cyst_right: right kidney cyst
sacrum: sacrum
vertebrae_S1: vertebra S1
vertebrae_L5: vertebra L5
vertebrae_T12: vertebra T12
vertebrae_C1: vertebra C1
heart: heart
aorta: aorta
pulmonary_vein: pulmonary vein
pulmonary_artery: pulmonary artery
brachiocephalic_trunk: brachiocephalic trunk
subclavian_artery_right: right subclavian artery
common_carotid_artery_left: left common carotid artery
brachiocephalic_vein_left: left brachiocephalic vein
atrial_appendage_left: left atrial appendage
superior_vena_cava: superior vena cava
inferior_vena_cava: inferior vena cava
portal_vein_and_splenic_vein: portal vein and splenic vein
iliac_artery_left: left iliac artery
iliac_vena_right: right iliac vein
humerus_left: left humerus
scapula_right: right scapula
clavicula_left: left clavicle
femur_left: left femur
hip_right: right hip bone
spinal_cord: spinal cord
gluteus_maximus_left: left gluteus maximus
gluteus_medius_right: right gluteus medius
gluteus_minimus_left: left gluteus minimus
autochthon_left: left erector spinae
iliopsoas_right: right iliopsoas muscle
brain: brain
skull: skull
rib_left_1: left rib 1
rib_right_12: right rib 12
sternum: sternum
costal_cartilages: costal cartilage
face: face
heart_myocardium: myocardium
heart_atrium_left: left atrium
heart_ventricle_right: right ventricle
intervertebral_discs: intervertebral disc
vertebrae: vertebra
lung_left: left lung
quadriceps_femoris_left: left quadriceps femoris
thigh_medial_compartment_right: right medial thigh compartment
thigh_posterior_compartment_left: left posterior thigh compartment
sartorius_right: right sartorius
lung_vessels: lung vessel
BTCV, AMOS and FLARE
Right Kidney: right kidney
left kidney: left kidney
Gallbladder: gallbladder
Esophagus: oesophagus
IVC: inferior vena cava
postcava: inferior vena cava
left adrenal gland: left adrenal gland
bladder: urinary bladder
VinDr-CXR
Aortic enlargement: aortic enlargement
Atelectasis: atelectasis
Calcification: calcification
Cardiomegaly: cardiomegaly
Clavicle fracture: clavicle fracture
Consolidation: consolidation
Edema: oedema
Emphysema: emphysema
Enlarged PA: enlarged pulmonary artery
ILD: interstitial lung disease
Infiltration: infiltration
Lung Opacity: lung opacity
Lung cavity: lung cavity
Lung cyst: lung cyst
Mediastinal shift: mediastinal shift
Nodule/Mass: nodule or mass
Pleural effusion: pleural effusion
Pleural thickening: pleural thickening
Pneumothorax: pneumothorax
Pulmonary fibrosis: pulmonary fibrosis
Rib fracture: rib fracture
Other lesion: other lesion
COPD: chronic obstructive pulmonary disease
Lung tumor: lung tumour
Pneumonia: pneumonia
Tuberculosis: tuberculosis
Other disease: other abnormality
No finding: no finding
NIH ChestX-ray14 and CheXpert
Pleural_Thickening: pleural thickening
Hernia: hernia
Fibrosis: fibrosis
Mass: mass
Nodule: nodule
Enlarged Cardiomediastinum: widened mediastinum
Lung Lesion: lung lesion
Pleural Other: other pleural abnormality
Support Devices: support device
Fracture: fracture
Chest X-ray structures
Airways: airway
Cardiomediastinum: cardiomediastinum
Ground Glass Opacities: ground-glass opacity
Monitoring Probes: monitoring probe
Tubings: tube
Central Venous Line: central venous line
Nosogastric Tube: nasogastric tube
Endotracheal Tube: endotracheal tube
RSNA haemorrhage
Subarachnoid hemorrhage: subarachnoid haemorrhage
subdural_hemorrhage: subdural haematoma
BraTS, MSD, LiTS, KiTS, ISLES
GD-enhancing tumor: enhancing tumour
peritumoral edema: peritumoral oedema
tumor core: tumour core
whole_tumor: whole tumour
liver tumor: liver tumour
liver_tumour: liver tumour
kidney_tumor: kidney tumour
lung_nodule: lung nodule
pancreas tumor: pancreatic tumour
hepatic vessel: hepatic vessel
ischemic stroke lesion: ischaemic stroke
anterior hippocampus: anterior hippocampus
Brain tumours
glioma: glioma
meningioma: meningioma
pituitary tumor: pituitary tumour
SA-Med2D, IMed and BiomedParse
left_lung: left lung
Lung_R: right lung
optic_disc: optic disc
optic cup: optic cup
left heart ventricle: left ventricle
COVID-19 infection: COVID-19 pneumonia
colon polyp: None
polyp: polyp
melanoma: melanoma
cotton wool spots: soft exudate
hard_exudates: hard exudate
microaneurysms: microaneurysm
nuclei: cell nucleus
thyroid nodule: thyroid nodule
transitional zone: prostate transition zone
HAM10000
akiec: actinic keratosis
bcc: basal cell carcinoma
bkl: benign keratosis
melanocytic nevi: melanocytic naevus
dermatofibroma: dermatofibroma
vascular lesions: vascular skin lesion
Chula RBC-12
Normal cell: normal red blood cell
Macrocyte: macrocyte
Microcyte: microcyte
Spherocyte: spherocyte
Target cell: target cell
Stomatocyte: stomatocyte
Ovalocyte: ovalocyte
Teardrop: teardrop cell
Burr cell: burr cell
Schistocyte: schistocyte
uncategorised: uncategorised red blood cell
Hypochromia: hypochromic red blood cell
Elliptocyte: elliptocyte
Histology and smears
Lymphocyte: lymphocyte
Tumor/Epithelial: tumour epithelial cell
Stromal: stromal cell
epithelial cells: epithelial cell
Neutrophils: neutrophil
RBC: red blood cell
Platelets: platelet
Modalities
MR: MRI
FLAIR: FLAIR
T1ce: contrast-enhanced T1-weighted MRI
chest x-ray: chest radiograph
Dermatoscopy: dermoscopy
H&E: H&E histology
blood_smear: blood smear microscopy
"""
PAIRS = [line.split(": ") for line in GOLDEN.splitlines() if ": " in line]


@pytest.mark.parametrize(("label", "term"), PAIRS, ids=[label for label, _ in PAIRS])
def test_labels_of_public_datasets(label: str, term: str) -> None:
    assert LEXICON.find(label) == (None if term == "None" else term)


def test_there_are_enough_of_them() -> None:
    assert len(PAIRS) >= 120


@pytest.mark.parametrize(
    "label",
    [
        "T1", "T2", "L5", "C1",  # a sequence or a vertebra
        "no pneumothorax", "not melanoma", "pneumonia?", "tumor-", "HER2+", "normal kidney", "possible pneumonia",
        "COVID-19, ARDS", "liver and spleen", "left and right kidney", "left right kidney", "kidney/liver", "organ",
        "LV", "RA", "ET", "GM", "nodule 3", "left", "L", "R", "", "_", "1", "background", "hip", "ventricle",
        "left vertebra", "left liver", "right spleen", "vertebra L", "left rib 13", "vertebrae_L6", "lens nucleus",
        "calcified nodule", "blood clot", "air pocket", "CT phantom", "left kidney insert",  # phantoms are no answers
        "subdural", "suture", "cord", "inflammatory", "dead", "ICH", "fundus", "prostate/uterus", "todo", "Unknown",
    ],
)  # fmt: skip
def test_no_match_is_better_than_a_wrong_one(label: str) -> None:
    assert LEXICON.find(label) is None


def test_every_term_is_found_however_it_is_written() -> None:
    for name, term in LEXICON.terms.items():
        if term.kind == "phantom":
            continue
        for word in (name, *term.words()):
            for written in (word, word.upper(), word.replace(" ", "_"), f" {word} ", word.replace(" ", "-")):
                assert LEXICON.find(written) == name, written


def test_the_side_may_stand_anywhere_and_be_one_letter_at_an_end() -> None:
    sided = [(name, term.side) for name, term in LEXICON.terms.items() if term.side]
    assert len(sided) > 100
    for name, side in sided:
        assert side
        rest = " ".join(word for word in name.split() if word != side)
        for written in (f"{rest}_{side}", f"{rest} ({side})", f"{rest}_{side[0].upper()}", f"{side[0]} {rest}"):
            assert LEXICON.find(written) == name, written
        other = LEXICON.mirror(name)
        assert other != name and LEXICON.find(f"{rest}_{LEXICON.side(other)}") == other


def test_camel_case_is_understood() -> None:
    assert LEXICON.find("LeftKidney") == "left kidney" and LEXICON.find("PleuralEffusion") == "pleural effusion"


def test_a_plural_is_its_singular_unless_it_is_a_term_itself() -> None:
    assert (LEXICON.find("cells"), LEXICON.find("cell")) == ("cells", "cell")
    assert LEXICON.find("ribs") == "rib" and LEXICON.find("metastases") == "metastasis"


def test_what_means_two_things_means_nothing() -> None:
    own = Lexicon(
        {
            "a": Term("cell", "", labels=["tumour-cell"]),
            "b": Term("cell", "", synonyms=["tumor cell"]),
            "c": Term("cell", "", synonyms=["kidney left"]),
        }
    )
    assert own.find("tumor cell") is None and own.find("Tumour_cells") is None
    assert own.find("L kidney") == "c"


@given(st.text(max_size=30) | st.text("aeiklnrt sL_-+/?1", max_size=12))
def test_any_text_is_borne_and_an_answer_is_one_of_the_terms_words(text: str) -> None:
    found = LEXICON.find(text)
    if found is not None:
        forms = {without_plurals(normal_form(word) or "") for word in (found, *LEXICON.terms[found].words())}
        assert without_plurals(normal_form(split_camel(text)) or "") in forms


@given(st.sampled_from(sorted(LEXICON.terms)), st.sampled_from(["no ", "not ", "other than ", "suspected ", "? "]))
def test_a_word_before_it_changes_the_meaning(name: str, before: str) -> None:
    found = LEXICON.find(before + name)
    assert found is None or found == "no finding" or before.strip() in found
