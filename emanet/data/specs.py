"""The table of data sets: where each keeps its files, its classes, its colours, and the meaning of its mask values.

prepare/recipes.py downloads and converts them, and knows how many images their splits have.
"""

from ..config import IGNORE, DatasetSpec, voc_palette
from .synthetic import SCENE_CLASSES, SCENE_PALETTE

Colours = tuple[tuple[int, int, int], ...]


def _names(text: str) -> tuple[str, ...]:
    """Class names separated by blanks; underscores stand for the blanks within a name."""
    return tuple(name.replace("_", " ") for name in text.split())


def _colours(text: str) -> Colours:
    """RGB in hexadecimal, separated by blanks."""
    return tuple((value >> 16, value >> 8 & 255, value & 255) for value in (int(code, 16) for code in text.split()))


VOC_CLASSES = _names("""
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
""")
# The number of each of VOC's 20 classes among COCO's categories: airplane 5, bicycle 2, bird 16, ...
COCO_OF_VOC = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)

CONTEXT_CLASSES = _names("""
    aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair
    cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike
    mountain mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track
    train tree truck tvmonitor wall water window wood
""")
# The number of each of these 59 classes among the 459 of the published LabelMaps; everything else is background.
CONTEXT_VALUES = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
    397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

CITYSCAPES_CLASSES = _names("""
    road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck
    bus train motorcycle bicycle
""")
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # the labelId of each
CITYSCAPES_PALETTE = _colours("""
    804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 003c64
    005064 0000e6 770b20
""")

COCOSTUFF_CLASSES = _names("""
    person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter
    bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee
    skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass
    cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch
    potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink
    refrigerator book clock vase scissors teddy_bear hair_drier toothbrush banner blanket branch bridge
    building-other bush cabinet cage cardboard carpet ceiling-other ceiling-tile cloth clothes clouds counter
    cupboard curtain desk-stuff dirt door-stuff fence floor-marble floor-other floor-stone floor-tile floor-wood
    flower fog food-other fruit furniture-other grass gravel ground-other hill house leaves light mat metal
    mirror-stuff moss mountain mud napkin net paper pavement pillow plant-other plastic platform playingfield
    railing railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow solid-other stairs
    stone straw structural-other table tent textile-other towel tree vegetable wall-brick wall-concrete wall-other
    wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind window-other wood
""")
# COCO numbers its categories 1 to 182; these eleven were never annotated: street sign, hat, shoe, ...
COCOSTUFF_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCOSTUFF_NUMBERS = tuple(number for number in range(1, 183) if number not in COCOSTUFF_UNUSED)

ADE20K_CLASSES = _names("""
    wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door table mountain
    plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk rock
    wardrobe lamp bathtub railing cushion base box column signboard chest_of_drawers counter sand sink skyscraper
    fireplace refrigerator grandstand path stairs runway case pool_table pillow screen_door stairway river bridge
    bookcase blind coffee_table toilet flower book hill bench countertop stove palm kitchen_island computer
    swivel_chair boat bar arcade_machine hovel bus towel light truck tower chandelier awning streetlight booth
    television_receiver airplane dirt_track apparel pole land bannister escalator ottoman bottle buffet poster stage
    van ship fountain conveyer_belt canopy washer plaything swimming_pool stool barrel basket waterfall tent bag
    minibike cradle oven ball food step tank trade_name microwave pot animal bicycle lake dishwasher screen blanket
    sculpture hood sconce vase traffic_light tray ashcan fan pier crt_screen plate monitor bulletin_board shower
    radiator glass clock flag
""")
ADE20K_PALETTE = _colours("""
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
    8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
    ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
    8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
    00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
    ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
    00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
    5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
    0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
    b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
""")

SPECS = {
    "camvid": DatasetSpec(
        classes=tuple("sky building pole road sidewalk tree sign_symbol fence car pedestrian bicyclist".split()),
        palette=(
            (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
            (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
        ),
    ),
    "drawn": DatasetSpec(classes=SCENE_CLASSES, palette=SCENE_PALETTE),
    "voc": DatasetSpec(
        classes=VOC_CLASSES,
        images="JPEGImages",
        masks="SegmentationClass",
        split_list="ImageSets/Segmentation/{split}.txt",
        ignore_colours=((224, 224, 192),),
    ),
    "coco_voc": DatasetSpec(  # COCO 2017 with VOC's classes, to train on before VOC
        classes=VOC_CLASSES,
        images="images/{split}2017",
        masks="masks_voc/{split}2017",
        split_list="lists_voc/{split}.txt",
    ),
    "context59": DatasetSpec(  # the masks of context60, with the background ignored
        classes=CONTEXT_CLASSES,
        palette=ADE20K_PALETTE[1:60],
        images="JPEGImages",
        masks="SegmentationClassContext",
        split_list="ImageSets/SegmentationContext/{split}.txt",
        label_map={0: IGNORE} | {value: value - 1 for value in range(1, 60)},
    ),
    "context60": DatasetSpec(
        classes=("background", *CONTEXT_CLASSES),
        palette=ADE20K_PALETTE[:60],
        images="JPEGImages",
        masks="SegmentationClassContext",
        split_list="ImageSets/SegmentationContext/{split}.txt",
    ),
    "cocostuff10k": DatasetSpec(
        classes=COCOSTUFF_CLASSES,
        palette=voc_palette(172)[1:],  # black is for unlabelled pixels
        images="images",
        masks="masks",
        split_list="imageLists/{split}.txt",
        split_names={"val": "test"},
    ),
    "cocostuff164k": DatasetSpec(
        classes=COCOSTUFF_CLASSES,
        palette=voc_palette(172)[1:],
        images="images/{split}2017",
        masks="annotations/{split}2017",
        label_map={number - 1: IGNORE for number in COCOSTUFF_UNUSED}  # these masks count from 0
        | {number - 1: label for label, number in enumerate(COCOSTUFF_NUMBERS)},
    ),
    "cityscapes": DatasetSpec(
        classes=CITYSCAPES_CLASSES,
        palette=CITYSCAPES_PALETTE,
        images="leftImg8bit/{split}",
        masks="gtFine/{split}",
        image_suffix="_leftImg8bit.png",
        mask_suffix="_gtFine_labelIds.png",
        label_map=dict.fromkeys(range(34), IGNORE) | {value: label for label, value in enumerate(CITYSCAPES_IDS)},
    ),
    "ade20k": DatasetSpec(
        classes=ADE20K_CLASSES,
        palette=ADE20K_PALETTE,
        images="images/{split}",
        masks="annotations/{split}",
        ignore_label=0,
        label_map={value: value - 1 for value in range(1, 151)},
        split_names={"train": "training", "val": "validation"},
    ),
}  # fmt: skip
