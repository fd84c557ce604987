"""Adjectives and nouns for the keys and values of the needle tasks."""

ADJECTIVES = tuple(
    """
    able acid agile amber ample arctic azure bald basic bitter blank bleak blind blue blunt bold
    brave brief bright brisk broad bronze calm careful casual cheap chief civil clean clear
    clever close cloudy coarse cold common cool coral crisp crude curly damp daring dark dear
    decent deep dense distant double dry dull dusty eager early easy elder empty exact faint
    fair famous fancy fast fierce final fine firm flat fleet fluent fond foreign formal fragile
    frank free fresh full gentle giant glad golden grand grave great green grim handy happy hard
    harsh hasty heavy hidden high hollow honest huge humble icy ideal idle inner jolly joint
    keen kind large late lazy lean light likely linear little local lofty lonely long loose loud
    lovely loyal lucky lunar mad main major mellow merry mild minor misty modern modest moral
    mute narrow native neat new noble noisy novel odd open oral orange pale patient plain polite
    poor proud public pure purple quick quiet rapid rare raw ready real red remote rich rigid
    ripe rough round royal rude rural rusty sad safe salty scarce secret serene sharp short shy
    silent silver simple single slim slow small smart smooth sober soft solar solid sour spare
    square stable steady steep stern stiff still strange strict strong sturdy subtle sudden
    sunny sweet swift tall tame tender thick thin tidy tight tiny tired tough true twin unique
    urban usual vague vast vivid vocal warm weak wealthy weary wet white whole wide wild wise
    wooden worthy yellow young zealous
    """.split()
)

NOUNS = tuple(
    """
    acorn anchor apple apron arch arrow autumn badge bakery ball banner barn basin basket beach
    beacon bean bell bench berry bird blade blanket boat book boot bottle bowl branch bread
    brick bridge brook broom brush bucket bureau button cabin cable camel camera canal candle
    canyon cargo carpet castle cave cellar chain chair chalk chapel cherry chest circle city
    cliff cloak clock cloth cloud coast coin comet compass copper corner cottage cotton cradle
    crane crater creek crown cup curtain dagger dawn desert desk diary dinner dock door dragon
    drawer drum eagle ember engine estate fabric falcon farm feather fence ferry field finger
    flag flame flask flower flute forest fork fossil fountain fox frame garden garlic gate
    glacier glass globe glove goose grain grape gravel guitar hammer harbor harp hat hawk hedge
    helmet herb hill hinge honey horn horse hotel house island ivory jacket jar jewel journal
    jungle kettle key kitchen kite knight ladder lake lamp lantern leaf lemon lens letter
    library lion lizard lock magnet map marble market mask meadow melon metal mill mirror moon
    moss mountain museum needle nest net notebook oak oasis ocean olive onion orchard oven owl
    paddle palace paper parade path pearl pebble pencil pepper piano picture pillar pillow pine
    pipe planet plate plum pocket pond porch prairie prism pump quarry quilt rabbit raft rain
    ranch razor reef ribbon ridge ring river road robe rocket roof rope rose saddle sail salt
    sand scarf school shadow shell shield ship shoe shore shovel silk sketch sleeve snow soap
    spade spider spoon spring stable star statue stone storm stove stream street sugar summit
    sword table tail temple tent theater thread throne tiger timber torch tower town trail train
    tree trumpet tulip tunnel turtle umbrella valley vase velvet village violin wagon wall
    walnut watch wheel whistle willow window winter wolf yard
    """.split()
)
