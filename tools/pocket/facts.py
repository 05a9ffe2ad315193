"""The facts that the pocket LLM knows, as tables of words. Questions and speech are built elsewhere."""


def _parse_pairs(pairs: str) -> dict[str, str]:
    """Returns the dictionary that is written as "a:b c:d"."""
    return {first: second for first, _, second in (pair.partition(":") for pair in pairs.split())}


CAPITALS = _parse_pairs(
    "france:paris spain:madrid italy:rome germany:berlin england:london ireland:dublin portugal:lisbon "
    "greece:athens egypt:cairo kenya:nairobi japan:tokyo china:beijing russia:moscow cuba:havana peru:lima "
    "chile:santiago canada:ottawa austria:vienna hungary:budapest poland:warsaw norway:oslo sweden:stockholm "
    "finland:helsinki denmark:copenhagen belgium:brussels turkey:ankara india:delhi thailand:bangkok"
)
CONTINENTS = {
    **dict.fromkeys(
        "france spain italy germany england ireland portugal greece austria hungary poland norway sweden finland "
        "denmark belgium".split(),
        "europe",
    ),
    **dict.fromkeys("egypt kenya".split(), "africa"),
    **dict.fromkeys("japan china india thailand".split(), "asia"),
    **dict.fromkeys("cuba canada peru chile".split(), "america"),
}
_OPPOSITES = _parse_pairs(
    "hot:cold big:small fast:slow up:down old:young happy:sad day:night black:white open:closed early:late "
    "rich:poor strong:weak full:empty wet:dry hard:soft loud:quiet left:right long:short light:dark clean:dirty "
    "near:far high:low inside:outside first:last good:bad love:hate true:false thick:thin sweet:sour"
)
OPPOSITES = _OPPOSITES | {b: a for a, b in _OPPOSITES.items()}
ANIMAL_SOUNDS = _parse_pairs(
    "cow:moo dog:woof cat:meow sheep:baa duck:quack lion:roar pig:oink horse:neigh frog:ribbit bird:tweet "
    "snake:hiss wolf:howl owl:hoot mouse:squeak bee:buzz goat:bleat"
)
LEGS = _parse_pairs(
    "spider:eight dog:four bird:two snake:zero ant:six bee:six cow:four horse:four duck:two frog:four lion:four "
    "owl:two fish:zero goat:four"
)
COLORS = _parse_pairs(
    "sky:blue grass:green snow:white banana:yellow blood:red coal:black carrot:orange milk:white lemon:yellow "
    "tomato:red chocolate:brown sun:yellow strawberry:red elephant:grey flamingo:pink cucumber:green ocean:blue "
    "pumpkin:orange"
)
YOUNG_ANIMALS = _parse_pairs(
    "dog:puppy cat:kitten cow:calf sheep:lamb horse:foal duck:duckling bear:cub frog:tadpole"
)
PLURALS = _parse_pairs(
    "mouse:mice foot:feet tooth:teeth child:children man:men woman:women goose:geese dog:dogs cat:cats "
    "book:books leaf:leaves knife:knives box:boxes city:cities"
)
PAST_TENSES = _parse_pairs(
    "go:went run:ran sing:sang come:came give:gave take:took make:made find:found think:thought drink:drank "
    "speak:spoke swim:swam fly:flew sleep:slept"
)
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
ANIMALS_BY_SIZE = "ant mouse frog cat dog sheep lion cow elephant whale".split()
NAMES = (
    "anna tom maria peter lucy sam emma david nora oscar julia leo sofia max clara henry alice victor laura simon "
    "diana felix ruth adam nina paul eva martin olga hugo"
).split()

SPANISH = _parse_pairs(
    "zero:cero one:uno two:dos three:tres four:cuatro five:cinco six:seis seven:siete eight:ocho nine:nueve "
    "ten:diez eleven:once twelve:doce thirteen:trece fourteen:catorce fifteen:quince sixteen:dieciséis "
    "seventeen:diecisiete eighteen:dieciocho nineteen:diecinueve twenty:veinte red:rojo blue:azul green:verde "
    "white:blanco black:negro yellow:amarillo orange:naranja pink:rosa brown:marrón grey:gris hot:caliente "
    "cold:frío big:grande small:pequeño fast:rápido slow:lento old:viejo young:joven happy:feliz sad:triste "
    "day:día night:noche open:abierto closed:cerrado rich:rico poor:pobre strong:fuerte weak:débil full:lleno "
    "empty:vacío hard:duro soft:blando left:izquierda right:derecha long:largo short:corto good:bueno bad:malo "
    "love:amor hate:odio high:alto low:bajo first:primero last:último dog:perro cat:gato house:casa water:agua "
    "bread:pan milk:leche book:libro sun:sol moon:luna friend:amigo apple:manzana fish:pez bird:pájaro "
    "horse:caballo cow:vaca tree:árbol flower:flor table:mesa chair:silla door:puerta hand:mano heart:corazón "
    "school:escuela king:rey queen:reina monday:lunes tuesday:martes wednesday:miércoles thursday:jueves "
    "friday:viernes saturday:sábado sunday:domingo elephant:elefante lion:león mouse:ratón whale:ballena "
    "sheep:oveja frog:rana ant:hormiga"
)
TRANSLATABLE = [
    word
    for word in SPANISH
    if word not in NUMBERS[11:]
    and word not in DAYS
    and word not in ("love", "hate", "high", "low", "first", "last")
]
SPELLING_WORDS = (
    "cat dog sun moon tree fish bird milk bread water house green red blue apple table door hand king queen horse cow "
    "frog lion lemon snow coal book foot box man leaf goat wolf owl duck"
).split()

# Words for statements. There are no homophones among them: the sound alone determines the text.
PEOPLE = (
    "mother father sister brother teacher doctor farmer baker driver singer friend neighbour uncle grandmother soldier "
    "painter sailor king queen child man woman"
).split()
THINGS = (
    "book table chair door window bottle basket letter ball guitar lamp clock hat coat jacket key bridge ship train "
    "car bus boat bicycle pencil paper knife spoon cup plate blanket pillow candle mirror ladder hammer bell drum box "
    "house tree flower leaf apple banana carrot lemon tomato bread cheese cake soup rice butter sugar salt honey "
    "chocolate strawberry pumpkin cucumber water milk coffee tea juice"
).split()
PLACES = (
    "garden kitchen school market forest river mountain village city station library hospital harbour island beach "
    "castle church farm field street office theatre museum airport"
).split()
ANIMALS = sorted(
    set(ANIMAL_SOUNDS)
    | set(LEGS)
    | set(YOUNG_ANIMALS)
    | set(ANIMALS_BY_SIZE)
    | {"rabbit", "fox", "monkey", "tiger"}
)
ADJECTIVES = sorted(
    set(OPPOSITES) - {"up", "down", "day", "night", "inside", "outside", "love", "hate", "left", "right"}
    | {
        "beautiful",
        "strange",
        "heavy",
        "round",
        "wooden",
        "golden",
        "tired",
        "hungry",
        "funny",
        "famous",
        "friendly",
    }
    | set(COLORS.values())
)
VERBS = (
    "sees likes wants finds takes carries opens closes paints washes brings sells keeps loses holds watches follows "
    "hears remembers forgets builds breaks draws hides loves hates"
).split()
PAST_VERBS = (
    "saw took found made lost broke drew gave sang drank forgot remembered painted carried opened".split()
)
INTRANSITIVE = (
    "sleeps runs sings dances walks swims laughs waits works jumps falls smiles shouts listens".split()
)
ADVERBS = (
    "today yesterday tomorrow slowly quickly again always never often together alone outside inside".split()
)
PREPOSITIONS = "in near behind under above beside from with without".split()
WEATHER = "rain snow wind sunshine thunder fog".split()
