"""The lexicon behind the synthetic clinical samples: diseases, drugs, examinations, laboratory tests.

Parsing the tables takes a few milliseconds once, on import. The tables were written for this repository
from general knowledge of medicine and copied from nowhere. They exist so that a demonstration model has
coherent text to train on; they are not complete, not reviewed and not medical advice. A row that names an
unknown drug, examination or laboratory test raises ValueError on import.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ncvc.corpus.clinical.diseases import DISEASE_ROWS
from ncvc.corpus.clinical.drugs import DRUG_ROWS


@dataclass(frozen=True, slots=True)
class Lab:
    """One laboratory test: the reference interval and the usual abnormal ranges, all in `unit`."""

    name: str
    unit: str
    normal: tuple[float, float]
    decimals: int  # digits after the point; -2 rounds to hundreds
    low: tuple[float, float] | None
    high: tuple[float, float] | None
    steady: bool  # does not follow treatment within weeks (HbA1c, an autoantibody)


@dataclass(frozen=True, slots=True)
class LabFinding:
    """A laboratory test that a disease moves: `direction` is 高値 or 低値, `span` the values to draw from."""

    lab: Lab
    direction: str
    span: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Drug:
    """One drug: `doses` are single doses in rising order, `route` a noun that takes を開始した."""

    name: str
    category: str
    route: str
    doses: tuple[str, ...]
    timing: str
    action: str
    side_effects: tuple[str, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Examination:
    """One examination: `technique` is how a report says it was done, `absent` what a report may deny."""

    name: str
    kind: str  # 画像, 生理, 内視鏡, 検体, 病理 or 評価
    technique: str
    purpose: str
    preparations: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disease:
    """One disease with everything a coherent document about it may name (fields: see `diseases`)."""

    name: str
    department: str
    ages: tuple[int, int]
    sexes: tuple[str, ...]
    setting: str
    onset: str
    stay: tuple[int, int]
    definition: str
    plain: str
    causes: tuple[str, ...]
    symptoms: tuple[str, ...]
    signs: tuple[str, ...]
    vitals: frozenset[str]
    labs: tuple[LabFinding, ...]
    findings: tuple[tuple[Examination, str], ...]
    drugs: tuple[Drug, ...]
    treatments: tuple[str, ...]
    complications: tuple[str, ...]
    advice: tuple[str, ...]


# name;unit;reference interval;decimals;low range;high range;固 when it does not follow treatment
_LAB_ROWS = """
白血球数;/μL;3500-8600;-2;1400-3200;9500-16000;
好酸球比率;%;1-5;0;;8-22;
ヘモグロビン;g/dL;12.0-15.8;1;6.5-10.4;;
MCV;fL;84-98;0;64-77;106-124;
血小板数;万/μL;15.8-34.8;1;1.2-9.5;;
CRP;mg/dL;0.02-0.14;2;;1.5-15;
プロカルシトニン;ng/mL;0.01-0.05;2;;2-30;
AST;U/L;13-30;0;;45-180;
ALT;U/L;10-40;0;;52-210;
LDH;U/L;124-222;0;;260-520;
ALP;U/L;38-113;0;;140-420;
γ-GTP;U/L;12-60;0;;90-380;
総ビリルビン;mg/dL;0.4-1.2;1;;1.8-6.5;
アルブミン;g/dL;4.1-5.1;1;1.8-3.3;;
総コレステロール;mg/dL;142-219;0;;280-420;
BUN;mg/dL;8-20;0;;26-60;
血清クレアチニン;mg/dL;0.50-1.04;2;;1.30-2.80;
eGFR;mL/分/1.73m2;65-100;1;18-52;;固
カリウム;mEq/L;3.6-4.8;1;2.4-3.3;5.2-6.2;
補正カルシウム;mg/dL;8.8-10.1;1;;10.6-12.4;
リン;mg/dL;2.7-4.6;1;;5.0-6.8;
尿酸;mg/dL;3.0-6.9;1;;7.6-10.4;
血糖;mg/dL;80-109;0;;180-420;
HbA1c;%;4.9-6.0;1;;7.2-11.5;固
LDLコレステロール;mg/dL;70-119;0;;148-226;
中性脂肪;mg/dL;45-149;0;;190-620;
BNP;pg/mL;5.0-18.4;1;;220-1450;
高感度トロポニンT;ng/mL;0.003-0.014;3;;0.12-3.5;
CK;U/L;60-240;0;;600-4200;
Dダイマー;μg/mL;0.1-0.9;1;;3.2-24;
PT-INR;;0.90-1.10;2;;1.28-1.85;
アンモニア;μg/dL;15-60;0;;95-190;
アミラーゼ;U/L;44-132;0;;480-2200;
リパーゼ;U/L;13-55;0;;400-2800;
TSH;μU/mL;0.50-5.00;2;0.01-0.04;12-95;
遊離T4;ng/dL;0.90-1.70;2;0.15-0.65;2.90-7.20;
TSH受容体抗体;IU/L;0.1-1.9;1;;4.5-28;固
抗TPO抗体;IU/mL;1-15;0;;60-520;固
抗CCP抗体;U/mL;0.6-4.4;1;;18-320;固
リウマトイド因子;IU/mL;1-15;0;;32-260;固
MMP-3;ng/mL;20-110;0;;150-480;
赤沈1時間値;mm;2-15;0;;45-110;
補体C3;mg/dL;86-160;0;28-70;;
抗dsDNA抗体;IU/mL;1-12;0;;40-320;
フェリチン;ng/mL;20-200;1;2.0-8.5;;
血清鉄;μg/dL;60-180;0;10-32;;
ビタミンB12;pg/mL;233-914;0;60-150;;
KL-6;U/mL;150-499;0;;680-2200;固
非特異的IgE;IU/mL;10-170;0;;350-2800;固
CEA;ng/mL;0.8-5.0;1;;7.5-68;
PSA;ng/mL;0.30-4.00;2;;8-68;
CA125;U/mL;5-35;0;;48-160;
可溶性IL-2受容体;U/mL;156-474;0;;1200-6800;
IgG;mg/dL;870-1700;0;;3200-6800;
IgA;mg/dL;110-410;0;;430-620;固
尿蛋白;g/gCr;0.02-0.14;2;;0.6-9.5;
血漿アルドステロン濃度;pg/mL;4-82;0;;150-420;固
PaO2;Torr;80-98;1;48-60;;
PaCO2;Torr;35-45;1;;48-66;
抗アセチルコリン受容体抗体;nmol/L;0.0-0.2;1;;1.5-48;固
抗GAD抗体;U/mL;0.1-4.9;1;;20-1200;固
HCV-RNA;LogIU/mL;0.0-1.2;1;;5.2-6.9;固
"""

# name;kind;technique;purpose (verb phrase);preparations;findings to deny (key: first two characters)
_EXAMINATION_ROWS = """
胸部単純X線検査;画像;立位で正面像と側面像を撮影した;肺野や心陰影、胸水の有無を短時間で評価する;金属のついた衣類を外す|息を大きく吸って止める;気胸|胸水の貯留|肋骨の骨折|縦隔の偏位
胸部CT;画像;吸気位で非造影の薄層撮影を行った;肺や縦隔の病変を断層像で詳しく評価する;金属のついた衣類を外す|撮影中は息を止める;胸水の貯留|縦隔リンパ節の腫大|気胸|骨の破壊像
胸部造影CT;画像;非造影像に続いて造影剤を静注し動脈相を撮影した;大動脈や肺動脈の内腔と血流を評価する;造影剤のアレルギー歴を申告する|腎機能の検査を事前に受ける;縦隔リンパ節の腫大|骨の破壊像|気管の偏位
腹部造影CT;画像;単純撮影に続いて動脈相と平衡相を撮影した;腹部臓器の形態と血流、炎症や腫瘍の広がりを評価する;造影剤のアレルギー歴を申告する|検査前の食事を1食抜く;遊離ガス|副腎の腫大|骨の破壊像|大動脈瘤
腹部単純CT;画像;上腹部から骨盤まで非造影で撮影した;結石や副腎病変、出血の有無を評価する;金属のついた衣類を外す|撮影中は息を止める;腹水の貯留|遊離ガス|腸管の拡張|骨の破壊像
下肢動脈造影CT;画像;造影剤を急速静注し大動脈から足部まで撮影した;下肢動脈の狭窄や閉塞の部位と側副血行路を評価する;造影剤のアレルギー歴を申告する|腎機能の検査を事前に受ける;大動脈瘤|動脈解離|軟部腫瘤
頭部CT;画像;眼窩外耳孔線を基準に非造影で撮影した;頭蓋内出血や早期の虚血変化を迅速に評価する;頭部を動かさない|ヘアピンや入れ歯を外す;頭蓋骨の骨折|正中構造の偏位|硬膜下血腫
頭部MRI;画像;拡散強調像、T2強調像およびFLAIR像を撮像した;脳の虚血や萎縮、腫瘍などを詳細に評価する;体内の金属の有無を申告する|化粧を落とす;頭蓋内出血|硬膜下血腫|正中構造の偏位|下垂体の腫大
MRCP;画像;呼吸同期下に膵胆管を描出した;造影剤を用いずに胆管と膵管の形態を評価する;検査前の食事を1食抜く|体内の金属の有無を申告する;膵管の拡張|膵の嚢胞性病変|腹水の貯留
骨盤MRI;画像;T1強調像、T2強調像および拡散強調像を撮像した;骨盤内臓器の病変の性状と広がりを評価する;体内の金属の有無を申告する|検査前に排尿する;腹水の貯留|鼠径リンパ節の腫大|骨の破壊像
腰椎MRI;画像;矢状断と横断のT1強調像、T2強調像を撮像した;椎間板や神経、骨髄の状態を評価する;体内の金属の有無を申告する|仰向けで動かずに過ごす;硬膜外膿瘍|傍脊柱部の腫瘤|円錐部の異常信号
膝関節MRI;画像;プロトン密度強調像を3方向で撮像した;半月板や靱帯、軟骨の損傷を評価する;体内の金属の有無を申告する|膝を伸ばして動かさない;十字靱帯の断裂|骨腫瘍|膝窩の嚢胞
手指単純X線検査;画像;両手の正面像と斜位像を撮影した;関節の破壊や骨の変化を評価する;指輪を外す|手を台に密着させる;骨折|軟部組織の石灰化|関節の脱臼
膝関節単純X線検査;画像;立位荷重で正面像と側面像を撮影した;関節裂隙の幅や骨棘の程度を評価する;膝まわりの金属を外す|両足に均等に体重をかける;骨折|骨腫瘍|関節の脱臼
腰椎単純X線検査;画像;正面像、側面像および前後屈像を撮影した;腰椎の配列や不安定性を評価する;ベルトや金具を外す|指示された姿勢を保つ;圧迫骨折|椎弓の分離|骨の破壊像
胸腰椎単純X線検査;画像;正面像と側面像を撮影した;椎体骨折の有無と脊柱の弯曲を評価する;ベルトや金具を外す|撮影中は息を止める;椎弓根の消失|骨の破壊像|側弯の進行
頭部単純X線検査;画像;正面像と側面像を撮影した;頭蓋骨の骨病変を評価する;ヘアピンや入れ歯を外す|頭部を動かさない;骨折線|トルコ鞍の拡大|異常石灰化
副鼻腔CT;画像;冠状断と横断の骨条件像を作成した;副鼻腔の粘膜肥厚や骨の構造を評価する;ヘアピンや入れ歯を外す|頭部を動かさない;骨の破壊像|副鼻腔の液体貯留|腫瘤性病変
FDG-PET/CT;画像;FDGを静注し約60分の安静後に全身を撮影した;全身の代謝が亢進した病変を検索する;検査前の4時間は絶食とする|前日の激しい運動を控える;脳の異常集積|甲状腺の異常集積|肝の異常集積
骨シンチグラフィ;画像;放射性薬剤の静注3時間後に全身を撮影した;全身の骨代謝の亢進した部位を検索する;撮影の直前に排尿する|水分を十分にとる;肋骨の異常集積|頭蓋骨の異常集積|大腿骨の異常集積
甲状腺シンチグラフィ;画像;放射性薬剤の投与後に頸部の正面像を撮影した;甲状腺の機能と集積の分布を評価する;検査前の1週間はヨウ素を制限する|妊娠の可能性を申告する;結節状の集積|異所性の集積|集積の欠損
脳血流SPECT;画像;安静閉眼下に放射性薬剤を静注し断層像を得た;脳の局所の血流分布を評価する;静かな環境で目を閉じて過ごす|妊娠の可能性を申告する;基底核の集積低下|小脳の集積低下|後頭葉の集積低下
ドパミントランスポーターSPECT;画像;放射性薬剤の静注3時間後に断層像を得た;線条体のドパミン神経終末の減少を評価する;使用中の薬を申告する|頭部を動かさない;脳梗塞を疑う集積欠損|脳室の拡大による変形|体動による画像の乱れ
12誘導心電図;生理;安静臥位で記録した;不整脈や心筋虚血を短時間で評価する;安静にして力を抜く|胸と手首、足首を出す;
ホルター心電図;生理;24時間の連続記録を行った;日常生活での不整脈の頻度と症状との関係を調べる;行動と症状を記録する|機器を水にぬらさない;
心エコー検査;生理;左側臥位で心尖部と傍胸骨から描出した;心臓の動きや弁の状態、心腔の大きさを評価する;上半身の衣類を外す|左向きに横になる;
頸動脈超音波検査;生理;両側の総頸動脈から内頸動脈まで観察した;頸動脈の動脈硬化と狭窄の程度を評価する;首元の衣類と装飾品を外す|顎を上げて横を向く;
下肢静脈超音波検査;生理;鼠径部から下腿まで圧迫法で観察した;下肢静脈の血栓の有無と範囲を評価する;下肢の衣類を外す|圧迫時の痛みを伝える;
足関節上腕血圧比検査;生理;四肢の血圧を同時に測定した;下肢の動脈の狭窄を簡便に評価する;検査前に5分間安静にする|厚手の靴下を脱ぐ;
呼吸機能検査;生理;座位で最大努力呼出を繰り返した;換気障害の型と重症度を評価する;検査当日の喫煙を控える|最後まで息を吐き切る;
腹部超音波検査;生理;肋間と肋弓下から走査した;肝胆膵腎などの形態と結石、液体の貯留を評価する;検査前の6時間は絶食とする|息を吸っておなかを膨らませる;
甲状腺超音波検査;生理;頸部を軽く伸展させて両葉を観察した;甲状腺の大きさと血流、結節の有無を評価する;首元の衣類と装飾品を外す|検査中は唾液を飲み込まない;
経腟超音波検査;生理;経腟プローブを用いて子宮と付属器を観察した;子宮と卵巣の形態や腫瘤の性状を評価する;検査前に排尿する|月経中の場合は申告する;
関節超音波検査;生理;罹患関節を多方向から観察した;滑膜の炎症や結晶の沈着を評価する;関節の見える服装にする|痛む部位を伝える;
脳波検査;生理;覚醒時と睡眠時に記録した;脳の電気活動を記録し、てんかん性の異常を検索する;前日に洗髪する|整髪料を使わない;
神経伝導検査;生理;四肢の運動神経と感覚神経を電気刺激した;末梢神経の障害の程度と分布を評価する;手足を温める|電気刺激で痛みがあれば伝える;
反復刺激試験;生理;顔面神経と副神経を低頻度で刺激した;神経筋接合部の伝達障害を評価する;使用中の薬を申告する|検査中は力を抜く;
尿流測定検査;生理;専用の便器で排尿の勢いを記録した;排尿の勢いと量から下部尿路の通過障害を評価する;尿を十分にためる|ふだんどおりに排尿する;
純音聴力検査;生理;防音室で左右別に測定した;周波数ごとの聞こえの閾値を評価する;大きな音を避けてから受ける|音が聞こえたらすぐに合図する;
視野検査;生理;片眼ずつ静的視野を測定した;見える範囲と感度の低下を評価する;視線を中央から動かさない|適切な眼鏡を用いる;
眼底検査;生理;散瞳薬を点眼した後に観察した;網膜の血管や視神経の状態を評価する;検査後の数時間は車を運転しない|緑内障の有無を申告する;
骨密度検査;生理;腰椎と大腿骨近位部をDXA法で測定した;骨の強さの目安となる骨塩量を評価する;測定部の金属を外す|検査台で動かない;
冠動脈造影検査;生理;橈骨動脈からカテーテルを挿入し造影した;冠動脈の狭窄や閉塞の部位と程度を評価する;造影剤のアレルギー歴を申告する|検査後は穿刺部を安静に保つ;
脳血管撮影;生理;大腿動脈からカテーテルを挿入し造影した;脳動脈瘤や血管の狭窄を詳しく評価する;造影剤のアレルギー歴を申告する|検査後は安静臥床を守る;
嚥下造影検査;生理;造影剤を含む模擬食品を座位で摂取させた;飲み込みの動きと誤嚥の有無を評価する;口の中を清潔にする|楽な姿勢で座る;
上部消化管造影検査;生理;バリウムを服用し体位を変えて撮影した;食道から十二指腸の形態と粘膜を評価する;前日の夜から絶食とする|検査後に水分を多くとる;
上部消化管内視鏡検査;内視鏡;咽頭麻酔の後に経口的に挿入した;食道から十二指腸の粘膜を直接観察する;前日の夜から絶食とする|抗血栓薬の内服を申告する;
大腸内視鏡検査;内視鏡;腸管洗浄の後に盲腸まで挿入した;大腸から回腸末端の粘膜を直接観察する;前日に消化のよい食事をとる|腸管洗浄液を時間をかけて飲む;
気管支鏡検査;内視鏡;局所麻酔と鎮静の後に経口的に挿入した;気管支の内腔を観察し、組織や細胞を採取する;検査前の4時間は絶食とする|抗血栓薬の内服を申告する;
尿検査;検体;中間尿を採取し定性と沈渣を調べた;腎臓や尿路の異常を簡便に調べる;出始めの尿を避けて採取する|月経中の場合は申告する;
尿培養検査;検体;中間尿を無菌的に採取し培養した;尿路感染の原因菌と薬剤感受性を調べる;採取の前に陰部を清潔にする|抗菌薬の使用を申告する;
喀痰検査;検体;早朝の喀痰を採取し塗抹と培養を行った;呼吸器感染症の原因菌を調べる;採取の前に口をすすぐ|唾液を混ぜない;
血液培養検査;検体;異なる部位から2セットを採取した;血液中の細菌の有無と種類を調べる;採血中は腕を動かさない|抗菌薬の使用を申告する;
髄液検査;検体;側臥位で第3腰椎と第4腰椎の間を穿刺した;中枢神経の感染や炎症、出血の有無を調べる;背中を丸めた姿勢を保つ|検査後は安静臥床を守る;
関節液検査;検体;罹患関節を無菌的に穿刺した;関節炎の原因となる結晶や細菌の有無を調べる;穿刺部を清潔に保つ|抗血栓薬の内服を申告する;
ウイルス抗原検査;検体;水疱底をぬぐい検体を採取した;皮疹の原因となるウイルスを迅速に判定する;水疱をつぶさずに受診する|採取後は患部を保護する;
インフルエンザ抗原検査;検体;鼻咽頭ぬぐい液を採取した;インフルエンザウイルスの感染を迅速に判定する;発症した時刻を伝える|採取中は頭を動かさない;
鼻汁好酸球検査;検体;鼻汁を採取し塗抹標本を染色した;鼻炎がアレルギー性であるかを判定する;検査前の抗アレルギー薬の使用を申告する|採取前に鼻を強くかまない;
カプトプリル負荷試験;検体;カプトプリルの内服前と内服後に採血した;アルドステロンの自律的な分泌を判定する;影響する降圧薬を事前に変更する|検査中は安静臥床を守る;
腎生検;病理;超音波の観察下に腎下極を穿刺した;糸球体や間質の病変を組織学的に診断する;出血しやすい体質があれば申告する|検査後は安静臥床を守る;
骨髄検査;病理;後腸骨稜から骨髄液と組織を採取した;造血の状態や異常細胞の有無を調べる;出血しやすい体質があれば申告する|検査後は穿刺部を圧迫する;
前立腺針生検;病理;経直腸超音波の観察下に12か所を穿刺した;前立腺癌の有無と悪性度を組織学的に診断する;抗血栓薬の内服を申告する|検査後の血尿と発熱に注意する;
頸部リンパ節生検;病理;局所麻酔下に腫大したリンパ節を摘出した;リンパ節腫大の原因を組織学的に診断する;抗血栓薬の内服を申告する|検査後は傷を清潔に保つ;
皮膚生検;病理;局所麻酔下に皮疹の一部を採取した;皮膚病変を組織学的に診断する;麻酔薬のアレルギー歴を申告する|検査後は傷を清潔に保つ;
パッチテスト;評価;試薬を背部に貼付し48時間後に判定した;接触皮膚炎の原因物質を調べる;貼付部をぬらさない|貼付中は汗をかく運動を控える;
認知機能検査;評価;静かな個室で面接形式で実施した;記憶や見当識などの認知機能を点数で評価する;眼鏡や補聴器を用いる|疲れていない時間に受ける;
心理検査;評価;静かな個室で質問紙と面接により実施した;気分や思考、認知の特徴を評価する;ありのままに答える|疲れたら休憩を申し出る;
"""


def _numbers(text: str) -> tuple[float, float] | None:
    """'4-18' -> (4.0, 18.0); '' -> None."""
    if not text:
        return None
    lowest, highest = text.split("-")
    return float(lowest), float(highest)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split("|")) if text else ()


def _rows(table: str) -> list[list[str]]:
    return [line.split(";") for line in table.strip().splitlines()]


def _lookup(kind: str, name: str, *, among: dict, row: str):  # noqa: ANN202 -- the value type of `among`
    if name not in among:
        raise ValueError(f"the row of {row} names the {kind} {name!r}, which is not in the table: add it there")
    return among[name]


def _lab_finding(text: str, *, row: str) -> LabFinding:
    """'CRP↑4-18' or 'CRP↑' -> the test, the direction and the range to draw from."""
    match = re.fullmatch(r"(.+?)([↑↓])([0-9.]+-[0-9.]+)?", text)
    if match is None:
        raise ValueError(f"the row of {row} has the laboratory field {text!r}: write name, ↑ or ↓, and at most a range")
    lab = _lookup("laboratory test", match[1], among=LABS, row=row)
    span = _numbers(match[3] or "") or (lab.high if match[2] == "↑" else lab.low)
    outside = span and (span[0] > lab.normal[1] if match[2] == "↑" else span[1] < lab.normal[0])
    if not outside:
        raise ValueError(f"the row of {row} has {text!r}, whose range {span} is not outside {lab.normal}: widen it")
    return LabFinding(lab, "高値" if match[2] == "↑" else "低値", span)


def _drug(text: str, *, row: str) -> Drug:
    """'名' or '名=用量,用法' -> the drug, with the regimen of this disease where one is given."""
    name, _, regimen = text.partition("=")
    drug = _lookup("drug", name, among=DRUGS, row=row)
    if not regimen:
        return drug
    dose, timing = regimen.split(",")
    return replace(drug, doses=(dose,), timing=timing)


def _disease(lines: list[str]) -> Disease:
    """One row of the disease table: a head line and lines of labelled fields."""
    name, department, ages, sexes, setting, onset, stay = lines[0].split(";")
    field = {part[0]: part[2:] for line in lines[1:] for part in line.split(";")}
    findings = [item.split("=") for item in field["像"].split("|")]
    return Disease(
        name=name,
        department=department,
        ages=(int(ages.split("-")[0]), int(ages.split("-")[1])),
        sexes=tuple({"男": "男性", "女": "女性"}[sex] for sex in sexes),
        setting=setting,
        onset=onset,
        stay=(int(stay.split("-")[0]), int(stay.split("-")[1])),
        definition=field["定"],
        plain=field["易"],
        causes=_list(field["因"]),
        symptoms=_list(field["訴"]),
        signs=_list(field["所"]),
        vitals=frozenset(_list(field.get("バ", ""))),
        labs=tuple(_lab_finding(item, row=name) for item in _list(field.get("検", ""))),
        findings=tuple((_lookup("examination", exam, among=EXAMINATIONS, row=name), text) for exam, text in findings),
        drugs=tuple(_drug(item, row=name) for item in _list(field["薬"])),
        treatments=_list(field["療"]),
        complications=_list(field["併"]),
        advice=_list(field["導"]),
    )


def _diseases() -> dict[str, Disease]:
    blocks: list[list[str]] = []
    for line in DISEASE_ROWS.strip().splitlines():
        if line[1] != ":":
            blocks.append([])
        blocks[-1].append(line)
    return {disease.name: disease for disease in map(_disease, blocks)}


LABS: dict[str, Lab] = {
    name: Lab(name, unit, _numbers(normal) or (0, 0), int(decimals), _numbers(low), _numbers(high), steady == "固")
    for name, unit, normal, decimals, low, high, steady in _rows(_LAB_ROWS)
}
EXAMINATIONS: dict[str, Examination] = {
    name: Examination(name, kind, technique, purpose, _list(preparations), _list(absent))
    for name, kind, technique, purpose, preparations, absent in _rows(_EXAMINATION_ROWS)
}
DRUGS: dict[str, Drug] = {
    name: Drug(name, category, route, _list(doses), timing, action, _list(side_effects), _list(cautions))
    for name, category, route, doses, timing, action, side_effects, cautions in _rows(DRUG_ROWS)
}
DISEASES: dict[str, Disease] = _diseases()
DISEASES_OF_DRUG: dict[str, tuple[Disease, ...]] = {
    name: tuple(disease for disease in DISEASES.values() if any(drug.name == name for drug in disease.drugs))
    for name in DRUGS
}
FINDINGS_OF_EXAMINATION: dict[str, tuple[tuple[Disease, str], ...]] = {
    name: tuple(
        (disease, text) for disease in DISEASES.values() for exam, text in disease.findings if exam.name == name
    )
    for name in EXAMINATIONS
}
