"""Networks of timm: of every module that `list_modules` names, the smallest variant and those that differ in kind."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch

from tests.zoo.case import Case

# They run on any image; 64 pixels.
_ANY_SIZE = """
    caformer_s18 convformer_s18 convmixer_768_32 convnext_atto convnext_zepto_rms convnextv2_atto
    cpubone_nano cpubone_b1_dwnorm cs3darknet_focus_s cs3se_edgenet_x cspdarknet53 cspresnext50 cspnext_tiny davit_tiny
    densenet121 densenetblur121d dla34 dla60_res2net dpn48b dm_nfnet_f0 eca_nfnet_l0 nf_regnet_b0 nf_ecaresnet26
    eca_vovnet39b ese_vovnet19b_slim_dw ese_vovnet39b_evos ecaresnet26t edgenext_xx_small efficientnet_b0
    efficientnet_b0_g16_evos efficientnet_blur_b0 efficientnet_cc_b0_4e mixnet_s efficientvit_b0 efficientvit_l1
    fasternet_t0 fastvit_t8 fastvit_sa12 focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnext26ts gernet_s ghostnet_050
    ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto lcnetv2_small
    legacy_seresnet18 legacy_seresnext26_32x4d mambaout_femto mobilenetv3_small_050 mobilenetv4_hybrid_medium
    mobilenetv5_base mobileone_s0 mobilevit_xxs mobilevitv2_050 naflexvit_base_patch16_gap nextvit_small poolformer_s12
    poolformerv2_s12 pvt_v2_b0 pvt_v2_b2_li qwen3_vit_88m rdnet_tiny regnety_002 regnetz_005 regnetz_b16_evos
    repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s res2next50 resnest14d resnest50d_4s2x40d resnet10t
    resnet50_gn resnetblur18 resnetv2_50d_frn resnetv2_50x1_bit rexnet_100 selecsls42 sequencer2d_s skresnet18
    starnet_s050 tresnet_m vgg11_bn
"""

# They take the size of their images as an argument; 64 pixels.
_GIVEN_SIZE = """
    beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_0_rw_224 coatnet_rmlp_nano_rw_224
    coatnext_nano_rw_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 gmixer_12_224 gmlp_ti16_224
    hiera_tiny_224 maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 mixer_s16_224 mvitv2_tiny nest_tiny resmlp_12_224
    resnet50_clip samvit_base_patch16_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 test_vit test_vit2 test_vit3
    test_vit4 test_vit_relpos tnt_s_patch16_224 vit_base_patch16_rpn_224 vit_base_patch16_siglip_224
    vit_base_patch16_xp_224 vit_pe_core_tiny_patch16_384 vit_relpos_small_patch16_224 vit_small_patch16_18x2_224
    vit_small_patch16_dinov3 vit_small_patch16_rope_224 vit_srelpos_small_patch16_224 vit_tiny_patch16_224
    vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
"""

# Pixels where others are needed: patches of 14, windows of 7 in four stages, valid convolutions, tables of fixed size.
_OTHERS = {
    56: "deepseek_vit_412m",
    96: "inception_resnet_v2 inception_v3 inception_v4 legacy_xception nasnetalarge pnasnet5large xception41",
    128: "lowformer_b0 iformer_t",
    224: "convit_tiny efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_m0 gcvit_xxtiny levit_128s "
    "levit_conv_128s pit_ti_224 sam2_hiera_tiny shvit_s1 swiftformer_xs swin_tiny_patch4_window7_224 tiny_vit_5m_224 "
    "twins_pcpvt_small twins_svt_small visformer_tiny",
    240: "crossvit_tiny_240",
    256: "bat_resnext26ts botnet26t_256 halonet26t lambda_resnet26rpt_256 sebotnet33ts_256",
}


def _case(name: str, pixels: int, **arguments: Any) -> Case:
    settings = timm.get_pretrained_cfg(name)
    if settings is not None and settings.num_classes == 0:  # an encoder: its whole width would be an output
        arguments["num_classes"] = 10
    build = partial(timm.create_model, name, **arguments)
    return Case(library="timm", name=name, build=build, inputs=partial(torch.randn, 2, 3, pixels, pixels))


CASES = [
    *(_case(name, 64) for name in _ANY_SIZE.split()),
    *(_case(name, 64, img_size=64) for name in _GIVEN_SIZE.split()),
    *(_case(name, pixels) for pixels, names in _OTHERS.items() for name in names.split()),
    _case("csatv2", 512),
    _case("eva02_tiny_patch14_224", 56, img_size=56),
    _case("aimv2_large_patch14_224", 56, img_size=56),
    _case("flexivit_small", 64, img_size=64),
    _case("gemma4_vit_167m", 64),
    _case("xcit_nano_12_p8_224", 64),
]
