"""Words that de-identification has to tell apart: names of things that look like names of people, and the reverse.

All lists are ours, from general knowledge, in small letters. A capital letter in mid-sentence is the only sign of a
name that rules can see, so the first lists keep medicine's own capitals from being taken for one.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Signs, diseases, devices and scores that are called after a person or a place.
EPONYMS = _words(
    """
    adamkiewicz addison aicardi albers alder alport alzheimer amplatz amplatzer anderson anitschkow ann antoni
    apgar arbor aschoff asherman ashman askanazy askin atlanta auer baastrup babinski baker balthazar bankart
    barlow barr barrett barré bartholin barton bartter basedow batson bazett becker beer behcet behçet bell
    bennett bentall berger bernoulli bicêtre bielschowsky binet bird bishop bismuth blake blakemore blalock
    blalock-taussig bloch blumberg blumer boari bochdalek boerhaave borrmann bosniak boston bouchard boutonniere
    bovine bowen bowman braak bracht brenner breslow broca brodie brodmann broviac brown brudzinski brugada bruton
    buck buckler budd buhler burkitt bühler cabot cabrera caffey call camper camurati carney caroli castleman
    catterall chagas chance charcot chiari chiba chilaiditi child child-pugh chopart chvostek clark cloquet coats
    cobb codman colles congo conn cooley cooper corlette cormack cornell couinaud councilman courvoisier cowper
    coxsackie crafoord crawford creutzfeldt crohn cronkhite crowe cullen cushing dacron damus dandy danis dartos
    dawson deauville debakey denis denis-browne denonvilliers denver dercum dieulafoy dobhoff dohle doppler dormia
    douglas down drummond duchenne duke dukes dupuytren durie dutcher duval döhle eaton ebstein edwards ehlers
    eichenhoff eisenmenger ellis engelmann epstein erdheim erlenmeyer essex evans evans-jensen ewald ewing exner
    fabry fallot fanconi fazekas fegeler feinstein felty ficat finkelstein fisher fitz fleischner flexner fogarty
    foley fontaine fontan forestier forrest fort fourier fournier frank freiberg friedreich froment frykman
    fuhrman gage galeazzi galen gallavardin gamna garden garland gartland gartner gaucher gehrig gerbode gerota
    ghon gianturco giemsa gilbert gissane glasgow gleason glenn glisson godwin golgi gomori goodpasture gorham
    gorlin goutallier gram graves grawitz grey grocott groshong grunwald grünwald guedel guillain gustilo guyon
    haggitt hakim hamman hampel hampton hand hansen harrington hartmann hashimoto hauser haversian hawkins
    heberden hegglin heimlich heinz hemovac henle henoch hering herlyn hertz heschl hess hesselbach heubner
    hickman hicks hill hinchey hinman hippel hirschsprung hodgkin hoffa hoffmann holt homer horner hounsfield
    howell howship huet hunt hunt-hess hunter hunter-hess huntington hurler hurthle hutchinson huët hürthle
    indiana ito jaccoud jackson jackson-pratt jakob jatene jefferson jeune jirovec jolly jones kaposi karnofsky
    kartagener kasabach kasai kashin kawasaki kay kehr kellgren kerley kernig kienbock kienböck kiesselbach
    killian killip kimmelstiel kimura kirschner klatskin klinefelter klippel koch kocher kock koedam kohler
    kolmogorov kommerell konno krukenberg kudo kulchitsky kussmaul kveim köhler küstner labbe labbé lachman ladd
    lambert lambl langenbeck langer langerhans langhans larmor larsen lasegue lasègue lauge lauren lawrence le
    leber lefort legg legg-calvé lehane leigh lemierre lenke leriche letterer leveen levin levine lewy leydig
    lhermitte libman lichtman liddle lindau linton lisfranc littre lodwick loeffler louis lown ludwig lugano
    luschka lutembacher luxol lyme löffler mach macintosh maddrey madelung maffucci magendie magill maisonneuve
    malecot malgaigne mallampati mallinckrodt mallory marburg marfan marshall mason may mayer mayo maze mcburney
    mcdonald mcgrath meckel meigs meissner menetrier merkel meyer meyers michaelis mie milan miller milwaukee
    minnesota mirizzi mitrofanoff mobitz modic moebius mondor monro monteggia morgagni morison morquio morton
    movat moyamoya mullerian murphy mustard ménétrier müller müllerian naboth nachlas naclerio nasmyth neelsen
    neer nelson nissen nissl noonan norwood nuck nuss nyquist oddi oil ollier ormond orphan ortner ortolani
    osathanondh osborn osgood osler outerbridge paget palmaz pancoast papanicolaou papez pappenheimer paris
    parkinson parks pas patte pauwels pawlik pelger penrose percheron perls petit peutz peyer peyronie
    pfannenstiel pfirrmann phalen pick pierre pirani plummer poiseuille poland ponseti pott potter potts poupart
    prinzmetal probst prussian psammoma pugh purkinje pyle queckenstedt quinton raghib ranson rastelli raynaud
    redon reed reil reilly reinke reiter rendu retzius reye reynolds richter rigler riolan risser robin rockwood
    rokitansky rolando romanowsky romberg rosai rosenmuller rosenmüller rosenthal rosette ross rotch rouviere roux
    rovsing russell rutherford sabouraud sakita salem salter sano sarnoff scarpa schatzker schatzki scheltens
    scheuermann schiller schmorl schneider schober schwann scimitar segond seldinger sellick sengstaken sengupta
    senning sertoli sever sezary sgarbossa shenton shiley shone shwachman siewert sinding sipple
    sister-mary-joseph sjogren sjögren skene smith spetzler spigelian spitz stansel starry stein steinberg
    steinmann stener stensen stenver sternberg stewart stieda still stokes strassmann stryker studer stulberg
    sturge sudan sudeck swan swan-ganz swyer sylvian sylvius takayasu takotsubo tarlov taussig taylor teflon
    tenckhoff terry thomas thomsen thornwaldt tillaux tinel tolosa tonnis tornwaldt toronto tourette touton towne
    treitz trendelenburg trolard trousseau tscherne turcot turner tönnis uhl valsalva vancouver vaquez varian
    vater verhoeff verner verocay virchow von-hippel vonsattel waldenstrom waldenström waldeyer wallenberg
    wartenberg warthin watchman waters waterston weber weber-christian weber-danis wegener weil wellens wells
    wenckebach wermer werner wernicke westermark wharton whipple white whitmore who-grade wiggers wilms wilson
    winquist wintersteiner wirsung wolff wolffian wright wrisberg wullstein yamada yankauer yates zellballen
    zenker ziehl zinsser zollinger
    """
)

# Phrases of several words of which some are given names: they are set aside before names are looked for.
PHRASES = (
    "Sister Mary Joseph",
    "Austin Flint",
    "Graham Steell",
    "Charcot-Marie-Tooth",
    "Marie-Strümpell",
    "Von Willebrand",
    "von Willebrand",
    "Von Hippel",
    "von Hippel",
    "von Recklinghausen",
    "Von Recklinghausen",
    "von Meyenburg",
    "Von Meyenburg",
    "von Gierke",
    "St. Jude",
    "St Jude",
    "New York Heart Association",
    "Ann Arbor",
)

# Eponyms that are frequent surnames or towns as well: medicine's only before one of `HEADS`, or with an apostrophe.
SURNAMES = _words(
    """
    alder anderson atlanta baker barlow barr barton beer bell bennett berger bird bishop blake bloch brown call
    camper clark cooley cooper cornell crawford douglas duval edwards ellis evans ewald fisher frank garden
    gilbert graves hall hand hansen harrington hauser hawkins hicks hill hoffmann homer howship hunt hunter
    indiana jackson jefferson johnson jolly jones kay kelly killian kimura kohler köhler lambert larsen lawrence
    levin levine lewis linton louis marshall martin mason may mayer mayo meyer meyers miller morton murphy müller
    neer nelson norwood paget parkinson parks petit pick pierre potter potts reed reilly reynolds richter
    rosenthal ross russell salem schneider schwann shone smith steinberg stewart sudan taylor terry thomas thomsen
    turner varian wagner waters watson weber wells werner wharton white whitmore wiggers wilson wolff wright yates
    """
)

# What is called after somebody.
HEADS = _words(
    """
    abscess acid anastomosis aneurysm angiosarcoma angle anomaly appearance approach area artery arthroplasty
    blade blue bodies body bypass canal cannula catheter cell cells classification clip contracture criteria
    criterion cyst deformity disease dislocation distribution drain duct effect equation fascia fissure fold
    foramen forceps forms fracture fractures ganglion gland grade grading granules hernia incision inclusion
    inclusions index law layer level ligament line lines lobe loop lymphoma maneuver manoeuvre mask method muscle
    mustard naevus neuroma nevus node nodes nodule nucleus number operation osteotomy palsy paralysis patch
    pattern phenomenon plane plaque plaques point position pouch principle procedure process projection ratio
    reconstruction red repair resection rosettes scale score shunt sign signs sinus space spot spots stage stain
    staining stent syndrome technique test thyroiditis traction transform triad triangle tube tubercle tumor
    tumors tumour tumours type units valve vein view views
    """
)

# Germs, scanners' makers, states and peoples, and what else medicine writes with a capital letter.
PROPER = _words(
    """
    achieva acinetobacter actinomyces acuson adenovirus afghanistan africa african agfa albania algeria america
    american angola aperio aplio aquilion arab arabia argentina armenia ashkenazi asia asian aspergillus aureus
    australia australian austria bacteroides bahrain bangladesh barium belgium blastomyces bolivia bordetella
    borrelia botswana bq brazil brazilian brilliance britain british brucella bruker bulgaria burma butterfly ca
    cambodia cameroon campylobacter canada candida canon carestream carinii caucasian chile china chinese
    chlamydia chlamydophila citrobacter cl class clostridioides clostridium coccidioides coli colombia commons
    congo coronavirus coronaviruses corynebacterium costa covid coxiella creative croatia cryptococcus cuba cyprus
    cytomegalovirus czechia definition denmark difficile discovery dotarem dutch east ebola echinococcus ecuador
    egypt elekta emirates england english entamoeba enterobacter enterococcus eosin epiq eritrea esaote
    escherichia estonia ethiopia europe european excluder fe finland flash fluorine force fr france francisella
    french fujifilm fusobacterium ga gadolinium gadovist gallium gambia gastrografin gd german germany ghana
    giemsa gore grade greece greek guatemala guinea gy haemophilus haiti hamamatsu hb healthcare helicobacter
    hematoxylin her herpes hispanic histoplasma hitachi hologic honduras hungary hz iceland india indian indonesia
    indwelling influenza ingenia iodine iopamiron iran iraq ireland isovue israel italian italy jamaica japan
    japanese jewish jiroveci jirovecii kenya ki kingdom klebsiella kls korea korean kuwait lanka laos latin latvia
    lebanon legionella leica leishmania liberia libya lipiodol listeria lithuania logiq lu luxembourg magnetom
    magnevist malawi malaysia mali malta masson medline medtronic mers metabolic metapneumovirus mexican mexico
    mindray moldova mongolia moraxella morocco mozambique mucor myanmar mycobacterium mycoplasma na namibia
    neisseria nepal netherlands nicaragua niger nigeria nikon nocardia norovirus north norway olympus oman
    omnipaque omniscan pakistan panama paracoccidioides paraguay pentax peru philippines philips plasmodium
    pneumococcus pneumocystis pneumoniae poland portugal primovist proteus pseudomonas pubmed puerto qatar
    radiopaedia revolution rhinovirus rhizopus rica rickettsia roche roman romania rotavirus russia russian rwanda
    salmonella samsung sars saudi schistosoma scientific scotland senegal serbia serratia shigella siemens signa
    singapore slovakia slovenia somalia somatom sonosite south spain spanish sri staphylococcus states
    stenotrophomonas storz streptococcus strongyloides sudan supersonic sv sweden swedish swiss switzerland syria
    taenia taiwan taiwanese tanzania tc technetium thailand thallium toshiba toxocara toxoplasma treponema
    trichomonas trichrome trypanosoma tuberculosis tunisia turkey turkish type uganda ukraine ultravist united
    uruguay usa varian varicella venezuela ventana vietnam visipaque vivid voluson wales west yemen yersinia
    zambia zealand zeiss zika zimbabwe zoster
    """
)

# Words of reports that often stand with a capital letter: in headings, at the start of sentences, in titles.
REPORT = _words(
    """
    a abnormal abnormality about above abscess absence accessory according acute addendum additional adequate
    adjacent admission admitted adult advanced advise advised after against age air all along also although an and
    angiogram angiography anterior any aorta aortic apex apical apices appearance appearances appetite appreciated
    approach april area areas around arrow arrowhead arrowheads arrows as aspect aspiration assessment associated at
    atelectasis atypical august axial baby background base based bases because been before behind being below benign
    between bibasal bibasilar bilateral bilaterally biopsy black blood blue blunted blunting body bone border both
    bottom bowel boy brain breast breath bronchial brother but by calcification calcified can cancer carcinoma
    cardiac cardiomediastinal care case catheter caused cell cells central cerebral cervical change changes chart
    chest child chills chronic circle classic classical clear clearly clinical clinically close coarse collapse
    color colour comment comments common compared comparison compatible complaining complains complaint complete
    computed conclusion confirmed confluent confusion congenital consistent consolidation consolidations consultant
    contour contrast control core coronal correlate correlation cough could count course crackles cross culture
    cultures current cyst cystic cytology daily dark data date dated daughter day days december decrease decreased
    decreasing decubitus deep demonstrated demonstrates demonstrating dense department details detected developed
    diagnosed diagnosis diagnostic diaphragm diarrhea diarrhoea did different differential diffuse discharge
    discharged discussion disease distal distribution doctor done dorsal double dry due during dyspnea dyspnoea each
    earlier early echo echocardiography edema effusion effusions either elderly elevated emergency endoscopic
    endoscopy endotracheal enhanced enhancement enhancing enlarged enlargement enlarging erect esophagus evaluation
    even evening evidence evident exam examination example except exclude expert exposure extensive external extra
    extubated fair false fatal father fatigue february female femoral fever few fibrosis field fig figs figure
    figures film films final finding findings fine first fissure flair flattened flattening fluid focal focus follow
    follow-up following followup for foreign found four fracture fractures from front frontal full further gastric
    gastrointestinal general gentleman giant girl given glass good grade gradient gray great green grey gross
    grossly ground had has have hazy he head headache healthy heart hematology hemidiaphragm hemithorax hemorrhage
    hepatic her here hernia high higher hilar his histological histology histopathology history hospital however
    husband hyper hyperexpanded hypo hypoinflated hypoxia hypoxic identified if ill image images imaging
    immunohistochemistry impression impressions improved improvement improving in inadequate incidental including
    increase increased increasing indicates indicating indication indications infant infection infectious inferior
    infiltrates inflammatory information infrahilar initial initially injury inserted insertion inset inside
    intensive internal interpretation interstitial interval into intra intubated investigation investigations
    irregular is isolated it its january joint july june key kidney known lab labelled laboratory labored laboured
    lady large larger last late later lateral left legend lesion lesions less level light likely limited line linear
    lines liver lobe lobes local long longitudinal lordotic loss low lower lumbar lung lungs lymph lymphoma macro
    magnetic magnification main major malaise male malignant man many march margin margins marked markedly mass
    masses may mean mechanism medial median mediastinal mediastinum medical medication men metastases metastatic
    method microscopic microscopy mid middle mild mildly minimal minimally minor mixed moderate moderately more
    morning most mostly mother mucosal multi multifocal multiple muscle myocardial name narrow nasal nasogastric
    nausea near neck necrosis negative neonatal neonate neoplasm nerve neural new newborn night no nodular nodule
    nodules non none normal not note noted notes november now number numerous nurse observed obstruction obvious
    occasional october of old on once one only opacification opacities opacity open optic or oral organizing other
    otherwise our out outcome outline over overexposed overlying overview oxygen pain palsy panel partial past
    patchy pathology patient patients pattern pelvic pelvis penetrated per percutaneous perihilar peripheral
    persistent persisting photograph physician picture placed placement plain plane plates pleural pneumonia
    pneumothorax point polyp poor portable position positioned positive possible possibly post posterior
    postoperative power pre preoperative presence present presentation presented presenting presents previous
    previously primary prior probable probably procedure productive progress progression progressive projecting
    projects prominence prominent prone proximal pulmonary quality question questionable radiograph radiographic
    radiographs radiological radiologist radiology rapid rare reading real reason recent recently recommend
    recommendation recommendations recommended rectal recurrent red reduced reference region registrar regression
    related remains removal removed renal repeat report reports representing represents resident residual resolution
    resolved resolving respiratory result results reticular retrocardiac review right rigor rigors rotated rotation
    round routine ruptured sagittal same sample satisfactory saturation saturations scale scan scanner scans
    scattered second secondary section see seen segment selected semi-erect semierect sepsis septal september septic
    sequence serial series serum severe severely shadow sharp she short shortness should show showed showing shown
    shows side sided sign signal signs silhouette similar simple since single sister site size skin slice slices
    slight slightly small smell smoker smooth soft solid some son source specimen spike spikes spinal spine spleen
    spontaneous sputum square stable stage stain stained standard star status stenosis stomach straight streaky
    studies study subcutaneous suboptimal subsequent subsequently subtle such suggest suggested suggesting
    suggestion suggestions suggestive suggests superior supine support suprahilar surface surgeon surgery surgical
    suspected suspicious swab sweats swelling symptom symptoms syndrome system systemic table tachycardia tachypnea
    tachypnoea taste technique temp temperature tenting test tested testing texture than that the their then therapy
    there these they thick thickened thickening thin third this thoracic thorax three thrombosis through thus
    thyroid time tip tissue to today together tomography tomorrow top total trachea transverse trauma treatment tree
    triangle true tube tubes tubular tumor tumour two type typical typically ultrasonography ultrasound unchanged
    under underexposed unenhanced unilateral unit unlikely unremarkable upper upright urinary uterine vague valve
    various vascular vein venous ventilated ventilation ventral ventricle ventricular very view views viral visible
    visual visualised visualized vomiting wall ward was we weakness weekly weight well were wet wheeze wheezing when
    where whereas which while white whole widespread width wife with within without woman women worsened worsening
    xray year-old years-old yellow yesterday young your zone zones
    """
)

# Given names that are no English word, as captions of several countries have them.
GIVEN_NAMES = _words(
    """
    aaron abdul abdullah abigail adam adrian agnes agnieszka ahmad ahmed aisha alan albert alberto alejandro
    alessandro alex alexander alexandra alfred ali alice alicia alison amanda amelia amir amy ana anastasia anders
    andre andrea andreas andrew andrzej andré andy angela anil anita anke ann anna anne annette annie anthony
    antoine anton antonio arjun arthur astrid aurelie axel barbara beata beatrice ben benjamin bernard bernd
    bernhard bertrand bianca birgit björn bogdan brenda brian brigitte bruno camille carla carlos carmen carol
    caroline catherine cecilia cedric charles charlotte chloe chris christa christian christina christine
    christoph christopher claire clara claudia claudio colette craig cristina cynthia céline daniel daniela
    danielle dariusz david deborah denise dennis diana diego dieter dimitri dominik dominique donald donna dorothy
    douglas edgar edith eduardo edward ekaterina eleanor elena elisabeth elizabeth ella ellen emily emma enrique
    eric erik erika ernst esther eugene eva evelyn ewa fabian fatima federico felix fernando florian francesca
    francesco francisco francois franz françois frederic friedrich frédéric gabriel gabriela gareth gary geoffrey
    georg george gerald gerhard gianni giorgio giovanni gisela giulia giuseppe gloria gonzalo gordon grzegorz
    guillaume gunther gustav gérard günter hans harold harry hassan heather heidi heike heinrich heinz helen
    helena helga helmut henri henrik henry herbert hermann hiroshi hugo hussein ian ibrahim igor ines inga ingrid
    irene isabel isabella isabelle ivan jacob jacqueline jacques jakub james jan jana jane janet janine jason
    javier jean jeffrey jennifer jens jeremy jessica jesus jim joachim joan joanna joao joe johann johanna
    johannes john jolanta jonas jonathan jorge jose josef joseph joshua josé joão juan juana juanita judith julia
    julian julie justin jörg jürgen kai karen karin karl karl-heinz katarzyna kate katharina katherine kathleen
    katrin kazuo keith kelly kenji kenneth kevin khalid klaus konrad krzysztof kumar kurt lars laura lauren
    laurent lea leah lena leo leon leonard leonardo liam lina linda lisa lorenzo louise luc luca lucas lucia lucy
    luigi luis luisa lukas magdalena malcolm manfred manuel manuela marc marcel marco marcus margaret margarita
    maria marianne marie mario marion markus marta martha martin martina mary maría mateusz mathias matteo matthew
    matthias maurice maximilian mehmet melanie melissa michael michel michele michelle miguel mikhail mohamed
    mohammad mohammed monika monique muhammad mustafa nadia nadine nancy natalia natalie natasha nathan nicholas
    nick nicola nicolas nicole nikolai nina noah nora olaf olga oliver olivier omar oscar oskar otto pablo paola
    paolo pascal patricia patrick paul paula paulina pedro peter petra philip philipp philippe pierre piotr priya
    rachel rafael rainer raj rajesh ralf ralph raymond rebecca regina reinhard renate renee ricardo richard rita
    robert roberto rodrigo roger roland rolf roman ronald rosa rosemary ruth ryan sabine sabrina salma samantha
    samira samuel sandra sandro sara sarah sebastian sergei sergio sharon sheila silvia simon simone sofia sonja
    sophia sophie stanislav stefan stefanie stefano stephan stephanie stephen steve steven stuart susan susanne
    suzanne sven sylvia takeshi tamara tanja tatiana teresa theodor theresa thomas thorsten thérèse tim timothy
    tina tobias tom tomasz tony ulrich ulrike ursula ute uwe valentina valerie vanessa vera veronica victor
    victoria viktor vincent vincenzo vladimir walter wei werner wilhelm william wojciech wolfgang xavier yasmin
    yuki yusuf yves yvonne zachary zoe
    """
)
