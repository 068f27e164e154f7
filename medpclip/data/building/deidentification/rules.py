"""The patterns of de-identification: what dates, identifiers, addresses and the rest look like in medical texts.

The kinds are those of 45 CFR 164.514(b)(2)(i), HIPAA's Safe Harbor: names, places smaller than a state, dates but for
the year, ages over 89, telephone numbers and other contacts, record and account numbers, URLs, addresses of machines.
Names of institutions and of files are ours to add. The patterns themselves are our design.
"""

from __future__ import annotations

import re

NAME, DATE, ID, PLACE, INSTITUTION, CONTACT, AGE, FILE = KINDS = (
    "NAME",
    "DATE",
    "ID",
    "PLACE",
    "INSTITUTION",
    "CONTACT",
    "AGE",
    "FILE",
)

_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆĈĊČĎĐĒĔĖĘĚĜĞĠĢĤĦĨĪĬĮİĴĶĹĻĽŁŃŅŇŌŎŐŒŔŖŘŚŜŞŠŢŤŦŨŪŬŮŰŲŴŶŸŹŻŽ"
_LETTER = r"[^\W\d_]"
_CAP = rf"[{_UPPER}](?:{_LETTER}|['’-](?={_LETTER}))*"  # a word that begins with a capital letter
_PARTICLE = r"(?:van|von|vom|zu|de|del|della|der|den|di|da|do|dos|du|la|le|los|ter|ten|bin|ibn|al|el|y)"
PERSON = rf"{_CAP}\.?(?:,? (?:{_PARTICLE} )*{_CAP}\.?){{0,3}}"
_MONTHS = (
    "january|february|march|april|may|june|july|august|september|october|november|december|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|"
    "januar|jänner|februar|märz|mai|juni|juli|oktober|dezember|okt|dez|"
    "janvier|février|fevrier|mars|avril|juin|juillet|août|aout|septembre|octobre|novembre|décembre|decembre|"
    "enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre|"
    "gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre|"
    "janeiro|fevereiro|março|maio|junho|julho|setembro|outubro|novembro|dezembro|"
    "januari|februari|maart|mei|augustus|styczeń|stycznia|lutego|marca|kwietnia|maja|czerwca|lipca|sierpnia|"
    "września|października|listopada|grudnia"
)
_YEAR = r"(?:19|20)\d\d"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_ORDINAL = r"(?:st|nd|rd|th|\.|er|º|°)?"
_CLOCK = r"(?:[T, ]+(?:at )?\d{1,2}[:.h]\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[ap]\.?m\.?)?Z?)?"
_UNIT = r"(?! ?(?:mm|cm|ml|mg|kg|g|%|°|x \d|× ?\d))"


def _pattern(*alternatives: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), flags)


def _from_word(*alternatives: str, flags: int = 0) -> re.Pattern[str]:
    """Alternatives that all begin where a word does: trying them only there is several times quicker."""
    return re.compile(rf"\b(?=\w)(?:{'|'.join(alternatives)})", flags)


_CONTACTS = _pattern(
    r"\b(?:https?|ftp|sftp|file|s3|smb)://[^\s<>\"')\]]+",
    r"\bwww\.[^\s<>\"')\]]+",
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
    r"(?<!\w)@\w{3,}",
    r"\b[a-z0-9-]+\.(?:com|org|net|edu|gov|info|co\.uk|ac\.uk|nhs\.uk)\b(?:/\S*)?",
    r"\b(?:tel|phone|telephone|telefon|téléphone|teléfono|telefono|fax|mobile|mobil|cell|pager|bleep|ext|handy)\b"
    r"\.? ?(?:no\.?|nr\.?|number)? ?:? ?\+?\(?\d[\d ()/.-]{1,18}\d",
    r"(?<![\w.])(?:\+|00)\d{1,3}[ ./()-]{0,2}\d[\d ()/.-]{5,16}\d\b",
    r"(?<![\w.])\(\d{2,5}\) ?\d{3,4}[ -]?\d{2,5}\b",
    r"(?<![\w.-])\d{3}[-. ]\d{3}[-. ]\d{4}\b(?![.-]\d)",
    r"(?<![\w.,-])0\d{1,5}[ /-]\d{2,4}(?:[ -]?\d{2,4}){1,4}\b",
    flags=re.I,
)
_FILES = _pattern(
    r"(?<![\w/])(?:[A-Za-z]:\\|\\\\|~/|\.{1,2}/|/)(?:[\w.@^,+-]+(?: [\w.@^,+-]+)?[\\/])+(?:[\w.@^,+-]*\w)?",
    r"(?<![\w/])(?:[\w.@^+-]+/)+[\w@^+-]+\.[a-z]{2,4}\b",
    r"\b[\w^@+-]+(?:\.[\w^@+-]+)*\.(?:dcm|dicom|nii(?:\.gz)?|jpe?g|png|tiff?|bmp|gif|pdf|docx?|xlsx?|csv|txt|zip|"
    r"mha|nrrd|"
    r"mp4|avi|ima|hdr|svs)\b",
    flags=re.I,
)
_UIDS = _from_word(
    r"(?<![\w.])\d+(?:\.\d+){4,}(?![\w])",
    r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",
    r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b",
    r"\b10\.\d{4,9}/\S+",
    flags=re.I,
)
_DATES = _from_word(
    rf"(?<![\w.-]){_YEAR}([-./]){_MONTH}\1{_DAY}{_CLOCK}(?!\d)",
    rf"(?<![\w.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d){_UNIT}",
    rf"(?<![\w./-])(?:{_DAY}([./-])\s?{_MONTH}\2\s?|{_MONTH}([/-]){_DAY}\3)(?:{_YEAR}|\d\d){_CLOCK}(?![\w/-]|"
    rf"\.\d){_UNIT}",
    rf"(?<![\w./-]){_MONTH}[/.-]{_YEAR}(?![\w/-]|\.\d)",
    rf"(?<![\w./-]){_YEAR}[/-](?:0[1-9]|1[0-2])(?![\w/-]|\.\d)",
    rf"\b(?:on|dated|vom|since|until|am|seit|le|el|il) (?:the )?(?:{_DAY}[/.]{_MONTH}|"
    rf"{_MONTH}/{_DAY})\.?(?![\w/-]|\.\d|,\d)",
    rf"(?<![\w.])(?:{_DAY}{_ORDINAL}[ -]?(?:of |de |di )?)(?:{_MONTHS})\b\.?(?:[ ,'’-]*(?:de |del )?(?:{_YEAR}|"
    rf"\d\d\b))?{_CLOCK}",
    rf"\b(?:{_MONTHS})\b\.?[ -]?{_DAY}(?:st|nd|rd|th)?\b(?!/)(?:,? ?{_YEAR})?{_CLOCK}{_UNIT}",
    rf"\b(?:{_MONTHS})\b\.?[ ,'’/-]*(?:of |de |del )?{_YEAR}\b",
    r"\b(?:born|née|geboren|geb\.|né|née|nato|nata|nacido|nacida|dob|d\.o\.b\.|date of birth|"
    r"birth ?date)(?: (?:in|on|am|en|le|the))?"
    rf" ?:? ?{_YEAR}\b",
    flags=re.I,
)
# Month names without a number: only where they can be nothing else.
_MONTH_ALONE = _from_word(
    r"\b(?:January|February|April|June|July|August|September|October|November|December|Januar|Februar|Oktober|"
    r"Dezember)\b",
    r"\b(?<=in )(?:March|May)\b|\b(?<=since )(?:March|May)\b|(?<=early )(?:March|May)\b|(?<=late )(?:March|May)\b",
    r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
    r"\b(?:Montag|Dienstag|Mittwoch|Donnerstag|Freitag|Samstag|Sonntag)\b",
)
_AGES = _from_word(
    r"\b(?:9\d|1[0-3]\d)(?=[ -]?(?:years?|yrs?|y/?o|y\.o\.|jahre?|jährig|jaehrig|ans|años|anni|jaar|anos|lat)\b)",
    r"\b(?:9\d|1[0-3]\d)(?=[ -]?(?:jährige|years?-old))",
    r"(?<=\baged )(?:9\d|1[0-3]\d)\b|(?<=\bage )(?:9\d|1[0-3]\d)\b|(?<=\bage: )(?:9\d|1[0-3]\d)\b|"
    r"(?<=\bage of )(?:9\d|1[0-3]\d)\b",
    r"(?<!-)(?-i:\b(?:9\d|1[0-3]\d)(?=[MF]\b| ?[yY](?:/[mMfFoO]|[oO])?\b(?! ?/)))",
    r"\bninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?(?=[- ]years?\b)",
    r"\b(?:centenarian|nonagenarian)\b",
    flags=re.I,
)
_TOKEN = r"(?=[\w./-]*\d)[A-Za-z0-9](?:[\w/-]|\.(?=\w))*"
_LONG_TOKEN = r"(?=(?:[\w./-]*\d){4})[A-Za-z0-9](?:[\w/-]|\.(?=\w))*"
_NUMBER = r"(?:no\b\.?|nr\b\.?|num\b\.?|number\b|n[°º]|id\b|#)"
_IDS = _from_word(
    # What is only ever said of an identifier.
    r"\b(?:mrn|m\.r\.n\.|accession|acsn|patient[- ]?id|pat\.?[- ]?id|ssn|nhs|nip|ipp|nss|r?id|uid|"
    r"patientennummer|fallnummer|"
    rf"auftragsnummer)(?: ?{_NUMBER}| is| was)* ?[:#=]? ?{_TOKEN}",
    # What is said of much else too.
    r"\b(?:medical record|record|acc|patient|pat|case|study|subject|hospital|insurance|policy|passport|account|"
    r"specimen|sample|"
    rf"order|exam|visit|encounter|device|serial|dossier|historia|cartella|social security|"
    rf"fall)\.? ?{_NUMBER} ?[:#=]? ?{_TOKEN}",
    r"\b(?:medical record|record|acc|patient|pat|case|study|subject|hospital|insurance|policy|passport|account|"
    r"specimen|sample|"
    rf"order|exam|visit|encounter|device|serial|dossier|historia|cartella|social security|"
    rf"fall)\.? ?[:#=]? ?{_LONG_TOKEN}",
    # What can be nothing else.
    r"\b\d{3}-\d{2}-\d{4}\b|\b\d{3} \d{3} \d{4}\b",
    r"(?-i:(?<![\w.])[A-Z]{1,8}(?:[-_/]?[A-Z]{1,4})?[-_/]?(?!(?:19|20)\d\d\b(?![-_/]\d))\d{4,}(?:[-_/][A-Z0-9]+)*\b)",
    r"(?<![\w./-])\d{2,}[-_/]\d{2,}[-_/]\d{3,}(?:[-_/]\d+)*\b",
    r"(?-i:(?<![\w.,])\d{4,}[-_/]?[A-Z]{1,4}[-_/]?\d{2,}\b)",
    r"(?<![\w.,])(?:\d{2,4}[-/])?\d{6,}(?!\d|\.\d)(?! ?(?:/|cells|copies|iu|u/|mm|µ|μ|per\b|[kmµ]?g\b|x\b|×))",
    flags=re.I,
)
_ADDRESSES = _pattern(
    rf"\b\d{{1,5}}[a-z]? (?:[NSEW]\.? )?(?:{_CAP} ){{1,3}}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Drive|Boulevard|"
    rf"Blvd|Court|Way|"
    rf"Square|Place|Terrace|Crescent|Close|Highway)\b\.?(?:,? {_CAP})*(?:,? [A-Z]{{2}})?(?: \d{{5}}(?:-\d{{4}})?)?",
    rf"\b[{_UPPER}][\w-]*(?:straße|strasse|str\.|gasse|allee|platz|weg|straat|laan|gatan|"
    rf"vej) \d+ ?[a-z]?\b(?:,? (?:[A-Z]-)?\d{{4,5}} {_CAP})?",
    rf"\b(?:\d{{1,4}}(?: bis)?,? )?(?:[Rr]ue|[Aa]venue|[Bb]oulevard|[Cc]hemin|[Aa]llée|Calle|Avenida|Plaza|Via|"
    rf"Viale|Piazza|Rua|ul\.|Ulica)"
    rf" (?:(?:de|du|des|la|le|les|del|della|di|da|do|dos|"
    rf"l['’]) ?)*{_CAP}(?: {_CAP})*(?:,? \d{{1,5}})?(?:,? \d{{4,5}} {_CAP})?",
    rf"\bP\.? ?O\.? Box \d+\b|\b(?:[A-Z]-)?\d{{5}},? {_CAP}(?: {_CAP})?",
    rf"\b{_CAP}(?: {_CAP})*, [A-Z]{{2}} \d{{5}}(?:-\d{{4}})?\b",
    r"\b[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}\b",
    rf"(?:(?<=\blives in )|(?<=\bresident of )|(?<=\bliving in )|(?<=\bborn in )|"
    rf"(?<=\bwohnhaft in )){_CAP}(?:,? {_CAP})*",
)
# The head of an institution's name: those that come last, and those that come first.
_LAST = (
    r"(?:(?i:University|Children['’]?s|General|Memorial|Medical|Regional|District|County|Community|Teaching|"
    r"Veterans|Military|Cancer|Heart) )*"
    r"(?i:Hospitals?|Clinics?|Clinique|Infirmary|University|Universität|Universiteit|Institute|Institut|Klinik|"
    r"Klinikum|Krankenhaus|Spital|"
    r"Medical (?:Cent(?:er|re)|School|College|Group|Practice)|Health(?:care)? (?:Cent(?:er|re)|System|Trust)|"
    r"Cancer Cent(?:er|re)|"
    r"Imaging Cent(?:er|re)|Polyclinic|Sanatorium|Hospice|Foundation|NHS (?:Foundation )?Trust|Ziekenhuis|"
    r"Sjukhus(?:et)?|Sykehus|"
    r"Sairaala|Ltd|Inc|GmbH|College|Academy)(?!\w)"
)
_FIRST = (
    r"(?:Hospital|(?:Complejo |Complexo )?Hospital[aá]rio?|H[ôo]pital|CHU|CHRU|AKH|UKE|UKM|UKD|Clinique|"
    r"Cl[ií]nica|Centre Hospitalier(?: Universitaire)?|Institut[oe]?|Istituto|"
    r"Universit(?:y|é|à|ät|eit|y Hospital)|Universidade?|Ospedale|Policlinico|Azienda Ospedaliera|Klinik(?:um)?|"
    r"Klinika|Uni[kK]lini(?:k|kum)|"
    r"Universitätsklini(?:k|kum)|Universitätsspital|Inselspital|Kantonsspital|Krankenhaus|Kreiskrankenhaus|"
    r"Charité|Szpital|Nemocnice|Fundación|"
    r"Fondazione|Sanatorio|Consultorio|School of Medicine|Faculty of Medicine|Department of \w+,)"
)
_OF = (
    r"(?:of|de|del|della|des|du|di|da|do|dos|la|le|les|der|für|zu|am|im|rechts|und|and|the|&|van|voor|St\.?|"
    r"San|Santa|Santo|Saint|Sankt|,)"
)
INSTITUTION_LAST = re.compile(
    rf"(?:{_CAP},? (?:{_OF} )*)+{_LAST}(?: (?:{_OF} )+{_CAP}(?: {_CAP})*| (?-i:{_CAP})(?= Hospital))?"
)
INSTITUTION_FIRST = re.compile(
    rf"\b{_FIRST}(?:-| )(?:{_OF} |[dl]['’])*{_CAP}(?:(?: |-)(?:{_OF} )*{_CAP})*|\bCharité\b|"
    rf"\b(?!Hospital\b)[{_UPPER}]{_LETTER}+(?:klinikum|krankenhaus|spital|sjukhus|ziekenhuis)\b"
)

# Persons: by title, by what follows, by how it is written, by what is said before.
_TITLE = (
    r"(?:(?:Assoc(?:iate)?\.?|Asst\.?|Assistant|apl\.?|PD|Priv\.-Doz\.) )?(?:Drs?|DR|Prof|PROF|Professor|Mr|Mrs|"
    r"Ms|Miss|Mx|MRS|Herrn?|Frau|Hr|Fr(?=\. ?[A-Z])|Mme|"
    r"Mlle|Monsieur|Madame|Sra?|Se[ñn]or(?:a|ita)?|Dña|Dott(?:\.ssa)?|Dr\.ssa|Sig(?:\.ra|nora?|\.)?|Doktor|"
    r"Doctor|Docteur|Dottore|Doktorin|Sir|Dame|Nurse|"
    r"Oberarzt|Chefarzt|Pan|Pani|Meneer|Mevrouw)\.?"
)
TITLED = re.compile(
    rf"\b{_TITLE}(?:[ ,-]+(?:{_TITLE}|med\.?|h\.?c\.?|phil\.?|rer\.?|nat\.?|Univ\.?))*[ -]+(?:{_PARTICLE} )*{PERSON}"
    rf"|\bM\. (?:{_PARTICLE} )*{_CAP}"
    r"|\b(?:dr|prof|mrs)\b\.? (?:(?:med|dr|prof)\b\.? )*(?!(?:of|in|and|or|at|with|the|to|was|is|noted|"
    r"med)\b)[^\W\d_]+(?:['’-][^\W\d_]+)*"
)
DEGREED = re.compile(rf"\b{PERSON},? (?:M\.?D\.?|MBBS|M\.B\.|FRCR|FRCP|FRCS|Ph\.?D\.?|FACR|RT\(R\))(?![\w-])")
CARET = re.compile(r"[^\W\d_][\w'’ -]*\^[\w'’ .-]*(?:\^[\w'’ .-]*)*\w")
INITIALS = re.compile(
    rf"(?<![\w.])(?:[{_UPPER}]\. ?){{1,3}}(?:{_PARTICLE} )*[{_UPPER}](?:{_LETTER}|['’-](?={_LETTER})){{2,}}"
)
# After these, what stands with a capital letter is a name; after a colon, whatever comes.
LABELLED = re.compile(
    r"\b(?i:(?:(?:patient(?:['’]s)?|pt|full|last|first|family|given|maiden|sur)[ -]?name|name(?: of patient)?|"
    r"nachname|vorname|nom|"
    r"prénom|nombre|apellidos?|cognome|signed(?: electronically)?(?: by)?|electronically signed by|dictated by|"
    r"transcribed by|"
    r"reported by|reviewed by|read by|verified by|approved by|attending(?: physician)?|referring physician|referred by|"
    r"radiologist|consultant|befunder|signature|gezeichnet|gez\.)(?: is)?)"
    rf"(?: ?: ?(?P<any>{_LETTER}[\w'’.-]*(?:,? {_LETTER}[\w'’.-]*){{0,2}})| -? ?(?P<person>(?:{_PARTICLE} )*{PERSON}))"
)
# After these, a word with a capital letter is a name unless it is one of medicine's own.
CUED = re.compile(
    r"\b(?:[Bb]y|[Pp]atients?|[Pp]t\.?|[Ff]rom|[Ff]or|[Ww]ith|[Cc]ourtesy of|[Cc]redit to|[Aa]uthor|[Ss]urgeon|"
    r"[Pp]hysician|[Rr]adiologist|"
    r"[Cc]alled|[Nn]amed|[Nn]ée|[Gg]eb\.|[Ww]ife|[Hh]usband|[Ss]on|[Dd]aughter|[Bb]rother|[Ss]ister|[Mm]other|"
    r"[Ff]ather|[Tt]o|[Cc]olleagues?|"
    r"[Aa]ttn|[Dd]ear|[Cc]c|[Vv]on|[Dd]urch|[Pp]atientin|[Pp]ar|[Pp]or)[:,]? "
    rf"(?P<person>(?:{_PARTICLE} )*{_CAP}\.?(?: (?:{_PARTICLE} )*{_CAP}\.?){{0,3}})"
)

# Before these, the first word of a sentence is somebody: things don't do that.
ACTING = re.compile(
    rf"(?P<person>{_CAP})(?= (?:complain(?:s|ed)|"
    r"den(?:ies|ied)|underwent|agreed|sa(?:id|ys)|thought|thinks|wrote|asked|lives|works|"
    r"smokes|visited|fe(?:lt|els)|consented|signed|and (?:his|her)|is (?:his|her|our|my))\b)"
)

# Before the values that the metadata know: a path or an address goes as a whole, not only the name in it.
WHOLE_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (CONTACT, _pattern(r"\b(?:https?|ftp|sftp|file|s3|smb)://[^\s<>\"')\]]+", flags=re.I)),
    (FILE, _FILES),
    (CONTACT, _CONTACTS),
)
# In this order: what is more certain first.
RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (ID, _UIDS),
    (DATE, _DATES),
    (AGE, _AGES),
    (ID, _IDS),
    (PLACE, _ADDRESSES),
    (DATE, _MONTH_ALONE),
)
