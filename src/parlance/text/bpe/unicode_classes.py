r"""The kind of every character (letter, mark, number, white space, other) as Unicode 16.0 has them, in 3 kB.

The categories of Python's own `unicodedata` change from one Python version to the next, and token ids must not. This
table is fixed; it is what tiktoken 0.14 (the Rust library `regex`) and tokenizers 0.23 (Oniguruma) use, both at Unicode
16.0. The Python library `regex` follows newer versions: characters that Unicode 17 and 18 added are letters, marks or
numbers there and `OTHER` here. White space is the property White_Space, the 25 characters of `\s`.

    class_of, block_of = class_table()
    class_of[(block_of[ord("a") >> 7] << 7) | (ord("a") & 127)] == LOWER

Source: the Unicode Character Database 16.0, general categories. `_RUNS` holds 3 194 runs of characters of one class:
first the class of every run, one byte each; then the lengths, in groups of 7 bits, the lowest first, where the top bit
of a byte tells that more follow.
"""

import base64
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

OTHER, NEWLINE, BLANK, SPACE, NUMBER, MARK, UPPER, LOWER, LETTER = range(9)
"""NEWLINE: CR and LF; BLANK: U+0020; SPACE: other white space; UPPER: Lu and Lt; LOWER: Ll; LETTER: Lm and Lo."""

_COUNT = 3194


@cache
def class_table() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(class_of, block_of); the class of code point c is `class_of[(block_of[c >> 7] << 7) | (c & 127)]`.

    Equal blocks of 128 characters are stored once. Block 0 comes first, so that `class_of[c]` serves ASCII.
    """
    raw = zlib.decompress(base64.b85decode(_RUNS))
    lengths = list[int]()
    value = shift = 0
    for byte in raw[_COUNT:]:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            lengths.append(value)
            value = shift = 0
    blocks = np.repeat(np.frombuffer(raw[:_COUNT], dtype=np.uint8), lengths).reshape(-1, 128)
    places: dict[bytes, int] = {}
    block_of = np.array([places.setdefault(block.tobytes(), len(places)) for block in blocks], dtype=np.uint8)
    return np.frombuffer(b"".join(places), dtype=np.uint8).copy(), block_of


_RUNS = (
    "c-qxhOKhE25&mb+oX3Cu|2}<vuYGM_UptOt$9C+*c{G5EMU_ZVQR#-Fus}ixB%l&y-3_X$c0(l=NJt=c0f-"
    "$^*?`hjL8TP}q_7|h7O0}CSWs205DON}obx~KwVgN(4TO9Azs_T3&dfL89487CB$!ZQ5}PP)j^AxUE_4~2So4TC7ykZ7x~)sfrbCCg%vo_=Y&K"
    "l?Y{~s<iz*)V#=CZmAYHZKoWyD3i{H5`Tol|U@6t_SEX<2dCKis3ONwr)2PTI39yRF*T~}$Im^ft-"
    "#dXI>D#Rpr9j|9lqFr*dm6K$SK6Z6ne`qg9<?CX3wMX`19GNn$Tt<ceiq&<~PM0&OdKRk+0p;E~FjWj<BVB-5kbT^Cr?)N&!ra8E;OMZKI-"
    "uoCbO7t5Ll%Y*#zw`uFpEk<U0f%oR(s_o5ql=7(UM4lTK9jEHV-Wst7lC~6|3`;`^$%^o~mdum!jj%gsi#+5=?9?6$u$jNo>aw^?zf-eB*$JDr"
    "O@Lk4sX4ppvbTE-"
    "*TkQB>T^R*jHLK4ggqS#|FjE*SCA7N$er$pb|oMz#EuZAdy5OkD7gt65G{ndX6n0+E#IUsBQ}wInW?BzhMLhj5Io#Mk{car$nYQ&4)zJI6LE_$"
    "I7~s3teTzyjGx85P1OfOHqht}Ht8Qa`C;?Pz47v|{(Er6!!Z0x3G-FlQ%dzHno-"
    "w(@##VOho~DXXKaLJ+l9c#bSTSr#gX94&z*?@rDxD~2u#brE=7QFYDpRE$$ybeKXc9TGQzi$qsQDI`sVrkpTU*(-"
    "BOq!jKh3TJWHC^EcCYFB$fQzf42%2ek&6&CBd5Fa^J9A5(Up;mKZ$fk+&VNzyTMW~b9I?d!YPfy+KA%%gFr;a-j52YU?kf^BjHH;-"
    "ddXn|%#J!%}j+dg76ab+MEpLZr=wS#cSOorWM6LnYIdJe`KRn_4ewHf?Zwg87{DtLM_!BEptR)#iI8mca4yzvU$F30(RDNHBg)ZeyZTY?PT&<T"
    "?n5YP$1L-M1bvLcLFl>MCe)N9?p+I=pzjXw&>2`uH*5($7mNLCH>p4tc5+@pVBBAGawgE;9cr$~hUr9rhu}_Ra1-"
    "d)0DARLbTzYm6RxT@ssr85++6o*Z_Qf3%dX|XDeJqoqf;`6r+$b;<rv-"
    "R$pXP6lgyjITC<U1cy5bZqw(=L7)nb7@<rvnQ;&{+xRiTKZ%oi9INfD}w#jBjO^spD8*=T4NGN~=A`HifsWovl7lMO%|_fdYFVZsE@N^=qeH!+"
    "TYX5(4&Ofaph=0Nh-"
    "@(9BXoZ+oE_P9e^2mTBOc+K&hC8dBmAjl()VSuI=gGK0Ije0zq!CDGew|d}>Are3EMjJV=CR`UuxW(rFMnY%9!cD$bs;?GY<@*z;(w=I!pFyME"
    "C+xsbKdF?nT}o$E*2TQRhGTwlEV}{p#&<X~yt!#LuCkKrewp{2dp}}>wrOax(*sSHJS-"
    "v4@(pmy=k;#KDc?zRHEN*WZsuz}=auqnyh+eos2Cu##4h3p>+MfAVD<C?Jc_^c;cIY)!Q}WCo@KXl&Cuzb4zOUjqGnVh@!3a*k8Fttb|pd4Xm)"
    "*Lf29L~hA|WeZ3_Iz9|>GF5P$4*2=3@lJk|dPjox>Adj*NdnVb@+9==~O*rvq61#%y=(1Jl~VY-cX;daQ>`P6X!ah-"
    "W4P|4?k^cH+Ukst51$A09XHTGv(Z{QpI2e14To;ZiEFv>jkKBQp;{shbMy2sP$G)MoZ9&?9iAMYtx7bR)ZYB*9}XO%3Eq{Imd%J_>pUg&ynx<<"
    ")-zvyt#$d?rDHk%9}29ejW*-QhcdNW{#xgh93AwHN>m`Mb@0M&#@Z2^;?dHR$Cng8R@<pVnZ;-@}9{Mx$BwH8`y1Y^axXIK7)-"
    "2=S5kyE?fKG5(o%!ETtc2fnBs7~d4zL^1`_vY&J`A&YdgWrS~U`d^C!2*pb?Xj=)y4E9HBYr!(vGEjZUZXYIa2NB8F(iecc&dx}FEH(UH)r51q"
    "}QbAYzyb$0NnuXvP<_^o7R0p!|RW6cD3=Gu%G5UQA}uxE8T#3ZApzCEF$UlW#30Pqg{7kpT2Qrzp-ywxntfleZ?E?{|S~^6?>_zuF#SP*UyMgA"
    "ZKT7Z;+}>t!yM^E~TB!LSx=~qt@8<lC_S{AdsrPCb4p<TtL073-dX%Bs?A%oOk8zZmzwd$*RX!sCrV)v_>upI`aWU>w&?-"
    "c}Swrz@<xF(yUI6_IgrG{ZC-mVmcsP-"
    "D8^1{Q6dd3$N)dE?|ptvbSKn_2uz+CU+b{4l}STnS>;yxxeo4j19#F7Qk;<;E*`T&M~`pZ@djFEpJjdEq$#ej#wX>H^kue2tO<OjqGl$!#1q{I"
    "nI!z78eBGM8m^pp*6epefyPfbl!yD^}g78&9%X_{12A(+jQ&FsO#Tq+#<Wo;Qb6=Qjzv-%EgI=&+3`i)Q<9R!FW9Q>XU5p6-"
    "$i+L2`!8f9|?F>8AhdH3~lb5f{fLc3_j-x7CZ?uj__NEgygWF!nFeIUKyo2L|ID+7W#h)bqW(_w4-"
    "3FdPmobce%mY(;U4qfo)K;SfXJwjeL!d}U>N^;^Vwm<My*jip`q7G0qW4w}%{(7NqB^o;o<OY2~WxPE*Ep4(B@BFFNVID*bL`8#TnZ!qG-"
    "evh>Yrdsf8K3CYy)m8rX-!mT<Hu&@ow0_0I3&knj$J4SY56!CRpCBU?FHxA_p~K}zL+4FuygTb(a_{^e$FGmgp8;RkY5weEtq<sjGq2KLvfr-"
    "jcgDA0-}*az=U>^s0SbE1+5"
)
