from .color import left_out as left_out
from .unlabelled_view import SemiSupervisedView as SemiSupervisedView
from .views import TrainView as TrainView
from .views import check_view_options as check_view_options
from .views import make_view as make_view
